"""How the demo model was made. The commands are at the top, what they need in the rooms; see README.md."""
