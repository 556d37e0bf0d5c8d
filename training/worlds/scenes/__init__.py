"""Flat shapes on a background, and the questions about one scene. `pairs` compares two."""
