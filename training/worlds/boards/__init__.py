"""Boards, which need pan & scan, and the questions about them. How a text is written: `signs`."""
