"""How faithful maps of an answer are: what they are measured on, the methods, the scores, and the table."""
