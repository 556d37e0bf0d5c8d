"""What only evaluation needs and training never sees. The command is `training.evaluate`."""
