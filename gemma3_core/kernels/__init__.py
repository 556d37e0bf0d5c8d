"""Kernels for what torch is slow at: on a CPU up to a whole decoder layer for one new token, on CUDA the small parts of
a decode step. They take tensors and numbers; modules, checkpoints and options belong elsewhere."""
