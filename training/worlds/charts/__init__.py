"""Bar charts, and the questions about them. `signs` draws their labels."""
