"""The demo model's shape, its batches, its losses and the trainer. What is learnt from: `worlds`."""
