"""int4 weights: the linear layer that holds them, and how a model gets them."""
