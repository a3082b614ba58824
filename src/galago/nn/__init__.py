"""Building blocks that every model family shares: small functions over frozen weight dataclasses."""
