"""GGUF files: their header, their blocks of weights, and the checkpoint folder that stands for one. No model."""
