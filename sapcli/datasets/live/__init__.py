"""Images that a program hands over, and no file holds."""
