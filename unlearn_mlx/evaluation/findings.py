"""What can be said of a change: one rule for tables, reports, notes and faces.

A mean that hardly moved proves nothing where few were asked, so a word is said only where the interval
of the change allows it.
"""

from unlearn_mlx.evaluation.intervals import clusters_of, compare
from unlearn_mlx.evaluation.keys import is_share
from unlearn_mlx.evaluation.records import Evaluation, Measured
from unlearn_mlx.evaluation.schema import interval_of

KEPT, LOST, UNCLEAR = "kept", "lost", "not told apart"
FELL, ROSE = "fell", "rose"
MARGIN = 0.1  # a loss that matters: points of a share, or a part of another measure's value


def kept_or_lost(difference: tuple[float, float], margin: float = MARGIN) -> str:
    """KEPT, LOST or UNCLEAR, by the interval of adapter minus base of something that is to stay.

    Kept says that a loss of ``margin`` is excluded, lost that none at all is.
    """
    low, high = difference
    if high < 0:
        return LOST
    return KEPT if low > -margin else UNCLEAR


def change_in_words(measured: Measured, metric: str, less_is_better: bool) -> str:
    """What a metric's interval says of its change; empty where the evaluation has none."""
    difference = interval_of(measured, metric, "difference")
    if difference is None:
        return ""
    low, high = difference
    if less_is_better:
        return FELL if high < 0 else ROSE if low > 0 else UNCLEAR
    return kept_or_lost(difference, MARGIN * (1.0 if is_share(metric) else measured.base[metric]))


def scope_in_words(evaluation: Evaluation, scope: str) -> str:
    """KEPT, LOST or UNCLEAR of all that was asked in a scope; empty where nothing was."""
    asked = [
        (probe, float(base), float(adapter))
        for probe in evaluation.probes
        if probe.scope == scope
        and (base := probe.shows("base")) is not None
        and (adapter := probe.shows("adapter")) is not None
    ]
    if not asked:
        return ""
    probes, base_values, adapter_values = zip(*asked, strict=True)
    clusters = clusters_of([(probe.id, probe.entity) for probe in probes])
    found = compare(base_values, adapter_values, 0, clusters, are_shares=True)
    return kept_or_lost((found["difference"][0], found["difference"][1]))
