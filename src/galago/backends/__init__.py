"""What runs models: the protocol (backend.py), a file for each that follows it, and what models take in memory."""
