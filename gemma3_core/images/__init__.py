"""Pictures: from a path, URL, bytes or array to the pixels that the encoder takes."""
