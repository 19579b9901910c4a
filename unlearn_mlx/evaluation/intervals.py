"""Bootstrap intervals of means, and of the difference of two means over the same probes."""

from collections.abc import Sequence

import numpy as np

from unlearn_mlx.evaluation.probes import fact_of

RESAMPLES = 2000
CONFIDENCE = 0.95
LEAST_CLUSTERS = 6  # with fewer, hardly anything differs between two resamples


def interval(
    values: Sequence[float], seed: int = 0, clusters: Sequence[str] | None = None
) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron 1979) of the mean of ``values``.

    ``clusters`` names what each value belongs to: whole clusters are drawn (Davison & Hinkley 1997,
    3.8), since values of one cluster rise and fall together. Without them each value is its own.

    Raises:
        ValueError: where there are none.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    data = np.asarray(values, float)
    _, cluster_of = np.unique(range(len(data)) if clusters is None else list(clusters), return_inverse=True)
    sums, sizes = np.bincount(cluster_of, data), np.bincount(cluster_of)
    # The same resamples for every list of these clusters: base and adapter stay paired.
    drawn = np.random.default_rng([seed, len(sums)]).integers(len(sums), size=(RESAMPLES, len(sums)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def share_interval(
    values: Sequence[float], seed: int = 0, clusters: Sequence[str] | None = None, least: float = 0.0
) -> tuple[float, float]:
    """The interval of a share between ``least`` and 1.

    Where all values are 0, or all are at an end, every resample says the same. Such an interval reaches
    as far as what can have been missed in so many clusters.
    """
    low, high = interval(values, seed, clusters)
    if low == high and low in (0.0, 1.0, least):
        unseen = most_unseen(len(values) if clusters is None else len(set(clusters)))
        return max(least, low - unseen), min(1.0, high + unseen)
    return low, high


def compare(
    base: Sequence[float],
    adapter: Sequence[float],
    seed: int = 0,
    clusters: Sequence[str] | None = None,
    are_shares: bool = False,
) -> dict[str, list[float]]:
    """The intervals of base, adapter and their paired difference (adapter minus base)."""
    difference = (np.asarray(adapter, float) - np.asarray(base, float)).tolist()
    return {
        name: list(
            share_interval(values, seed, clusters, least) if are_shares else interval(values, seed, clusters)
        )
        for name, values, least in (
            ("base", base, 0.0),
            ("adapter", adapter, 0.0),
            ("difference", difference, -1.0),
        )
    }


def most_unseen(count: int) -> float:
    """The largest share that ``count`` draws miss with a chance of 2.5 % (Clopper & Pearson 1934)."""
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / count))


def clusters_of(asked: Sequence[tuple[str, str]]) -> list[str]:
    """What rises and falls together among probes, each given as its id and entity.

    The fact where facts are asked in several forms, else the entity. Where nearly everything is asked
    about one entity (a topic without a file), each fact is its own.
    """
    facts = [fact_of(probe) for probe, _ in asked]
    entities = [entity or fact for (_, entity), fact in zip(asked, facts, strict=True)]
    is_asked_again = len(set(facts)) < len(facts)
    return facts if is_asked_again or len(set(entities)) < LEAST_CLUSTERS else entities
