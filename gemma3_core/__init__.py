"""Gemma 3 in PyTorch, without transformers: from chat messages with pictures to text.

Shape letters, the same in every file: B batch, T queries (new tokens), S keys (all tokens seen),
H heads, K key-value heads, D head width, E model width, N pictures (squares for the encoder).
"""
