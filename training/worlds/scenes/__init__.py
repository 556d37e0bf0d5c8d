"""Flat shapes on a background, and the questions about one scene. What compares two: `pairs`."""
