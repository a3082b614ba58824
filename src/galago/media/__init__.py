"""Images: from wherever they come to pixels, and back with what was found drawn on them."""
