"""Boards, which are read through pan & scan, and the questions about them."""
