""" "Look inside": what the model saw, where it looked, and what that changes."""
