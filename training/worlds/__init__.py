"""All that the demo model knows, a room for each sort of picture: how it comes about, what is asked. No training."""
