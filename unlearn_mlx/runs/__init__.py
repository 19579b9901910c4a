"""A run directory: manifest, lock, events, files written whole."""
