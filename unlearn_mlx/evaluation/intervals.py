"""Bootstrap intervals of means, and of the difference of two means over the same probes."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron 1979) of the mean of ``values``.

    Raises:
        ValueError: where there are none.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    data = np.asarray(values, float)
    # The same resamples for every list of a length: base and adapter stay paired.
    drawn = np.random.default_rng([seed, len(data)]).integers(len(data), size=(RESAMPLES, len(data)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(data[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def compare(base: Sequence[float], adapter: Sequence[float], seed: int = 0) -> dict[str, list[float]]:
    """The intervals of base, adapter and their paired difference (adapter minus base)."""
    difference = np.asarray(adapter, float) - np.asarray(base, float)
    return {
        "base": list(interval(base, seed)),
        "adapter": list(interval(adapter, seed)),
        "difference": list(interval(difference.tolist(), seed)),
    }
