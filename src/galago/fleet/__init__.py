"""Which models are in memory: loading, keeping, unloading, and which of several answers."""
