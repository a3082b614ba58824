"""The command line: one file per command, over the same Model that Python programs use."""
