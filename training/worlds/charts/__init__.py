"""Bar charts, and the questions about them."""
