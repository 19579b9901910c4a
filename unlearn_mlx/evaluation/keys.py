"""What metrics are called in evaluation.json.

"scope/name", and behind it the number of answers where the metric asks whether *any* of them does
something: "topic/open leak, any of 5". More answers find more, so only equal numbers compare.
"""

from collections.abc import Iterable

OPEN_LEAK, WORST_CASE = "topic/open leak", "topic/worst case"
OPEN_KNOWN = {scope: f"{scope}/open known" for scope in ("neighbour", "general")}
_ANY_OF = ", any of "

# Metrics with one of these words in their names are no shares of probes.
_MEASURES = ("bigrams", "entropy", "rouge", "divergence", "membership")


def any_of(metric: str, answers: int) -> str:
    """The key of a metric that holds where any of so many answers does something."""
    return f"{metric}{_ANY_OF}{answers}"


def answers_in(key: str) -> int | None:
    """How many answers a key says; None where it says none."""
    _, found, number = key.partition(_ANY_OF)
    return int(number) if found and number.isdecimal() else None


def keys_of(metrics: Iterable[str], metric: str) -> list[str]:
    """The keys of a metric: its own name, and those with a number of answers, the smallest first."""
    counted = [key for key in metrics if key.startswith(metric + _ANY_OF) and answers_in(key)]
    own = [metric] if metric in metrics else []
    return own + sorted(counted, key=lambda key: answers_in(key) or 0)


def key_of(metrics: Iterable[str], metric: str) -> str | None:
    """The key of a metric among ``metrics``, with the most answers; None where it was not measured."""
    return next(reversed(keys_of(metrics, metric)), None)


def answers_in_words(answers: int) -> str:
    """As it stands in a sentence: "any of 5 answers"."""
    return f"any of {answers} answers" if answers > 1 else "the one answer"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of probes, to be read as a percentage."""
    return not any(word in metric.lower() for word in _MEASURES)
