"""How the demo model was made: pictures and questions, tokenizer, trainer and evaluation."""
