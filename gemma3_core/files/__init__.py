"""Files of a checkpoint: found in a folder or on the Hub, read and written. No model, no tokenizer."""
