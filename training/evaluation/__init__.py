"""Held-out questions and their scoring: training never sees what is asked here. The command is `training.evaluate`."""
