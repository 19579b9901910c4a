"""Out into the world: export, publish, serve, and bring in what others made."""
