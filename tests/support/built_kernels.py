"""Builds the CPU kernels where it is imported, which the programs that are forked from there have then."""

from gemma3_core.kernels.cpu import library

library()
