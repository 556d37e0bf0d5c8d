"""How anything in a training picture is drawn: colors, outlines, fonts, labels. What a picture is of: `worlds`."""
