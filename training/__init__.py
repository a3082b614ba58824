"""How the bundled models were made. Not part of the wheel."""
