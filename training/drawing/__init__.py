"""How training pictures are drawn: colors, outlines, fonts, backgrounds, renderers, and what lies in each patch.

What a picture is of belongs in `worlds`.
"""
