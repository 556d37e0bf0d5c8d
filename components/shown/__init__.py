"""Small parts that the conversation and "Look inside" both show."""
