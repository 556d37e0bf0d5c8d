"""How training pictures are drawn: colors, outlines, fonts, backgrounds, renderers, and dense labels.

The content of pictures belongs in `worlds`.
"""
