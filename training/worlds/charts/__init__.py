"""Bar charts, and the questions about them. How a label is written: `signs`."""
