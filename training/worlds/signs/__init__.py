"""Signs of one line or two, and the questions about them. Texts on charts and boards are signs too."""
