"""What a checkpoint is asked and how it is judged, on what training never sees. The command is `training.evaluate`."""
