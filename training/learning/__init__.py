"""The demo model's configuration, its batches, losses and trainer. The training data comes from `worlds`."""
