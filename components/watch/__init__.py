"""What an operator sees of the questions: figures, log lines and spans. Never a text, a picture or an address."""
