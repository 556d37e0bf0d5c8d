"""All that the demo model knows: a room for each sort of picture, with how it comes about and what is asked.

Nothing here knows the model or its training.
"""
