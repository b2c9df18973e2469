"""Sound files as people have them: what is in their bytes, and how it is decoded to the end."""
