"""The chat model: generation, adapters on and off, shared prefixes, the engine thread."""
