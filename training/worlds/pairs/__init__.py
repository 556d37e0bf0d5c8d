"""Two pictures at once, and conversations that go on about one or two. Questions about one scene: `scenes`."""
