"""The model classes, and how their weights are loaded and saved."""
