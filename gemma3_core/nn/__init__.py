"""The parts of the model in pure torch: masks, KV cache, decoder layers, vision encoder. No files, no options."""
