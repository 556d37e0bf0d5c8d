"""The conversation: where it is written, shown and answered."""
