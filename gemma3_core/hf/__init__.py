"""What only programs written for transformers need: the Auto classes and `pipeline`."""
