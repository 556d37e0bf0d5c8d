"""How a question is put and an answer judged, whatever it is about; words and held-out phrasings.

What is asked about one sort of picture belongs in `worlds`.
"""
