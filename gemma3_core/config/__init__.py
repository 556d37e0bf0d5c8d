"""Configurations as frozen dataclasses, and config.json in both spellings. No torch modules."""
