"""How questions are phrased and answers judged, for all worlds; words and phrasings.

Questions about one sort of picture belong in `worlds`.
"""
