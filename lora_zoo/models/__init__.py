"""Models: the embedded one, folders in Hub format, and names on the Hub."""
