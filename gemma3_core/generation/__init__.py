"""From logits to tokens: sampling, prefill, decoding, and `generate` with its options."""
