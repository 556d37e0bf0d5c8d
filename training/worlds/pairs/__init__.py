"""Questions about two pictures, and conversations about one or two. `scenes` asks about one scene."""
