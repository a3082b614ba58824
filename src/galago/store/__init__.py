"""Which models there are by name, and their files: the catalogue, downloads, packed copies."""
