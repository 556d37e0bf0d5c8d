"""Words, and how a question is put, whatever it is about. What is asked of a picture: `worlds`."""
