"""Boards, which need pan & scan, and the questions about them. `signs` draws their texts."""
