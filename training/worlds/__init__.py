"""What the demo model knows: a room for each sort of picture, with its descriptions, drawing and questions.

Nothing here knows the model or its training.
"""
