"""Where every random choice comes from."""

import hashlib

import numpy as np


def random_source(seed: int, key: str) -> np.random.Generator:
    """Randomness that depends on the seed and the key alone."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
