"""Two pictures at once, conversations that go on about one or two, and the questions in them."""
