"""What metrics are called in evaluation.json.

"scope/name", and behind it the number of answers where the metric asks whether *any* of them does
something: "topic/open leak, any of 5". More answers find more, so only equal numbers compare.
"""

from collections.abc import Iterable, Mapping
from typing import Any

OPEN_LEAK, WORST_CASE = "topic/open leak", "topic/worst case"
OPEN_KNOWN = {scope: f"{scope}/open known" for scope in ("neighbour", "general")}
_ANY_OF = ", any of "


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


def with_answers_in_keys(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation whose keys say how many answers they count.

    One written before they did has "samples" beside a greedy answer, or the answers themselves.
    """
    old = [OPEN_LEAK, *OPEN_KNOWN.values()]
    if not any(key in evaluation.get("base", {}) for key in old):
        return evaluation
    answers = _answers_of_old(evaluation)
    names = {key: any_of(key, answers) for key in old}

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in values.items()}

    parts = ("base", "adapter", "intervals")
    return evaluation | {part: renamed(evaluation[part]) for part in parts if part in evaluation}


def _answers_of_old(evaluation: dict[str, Any]) -> int:
    samples = evaluation.get("samples", evaluation.get("settings", {}).get("samples"))
    if samples is not None:
        return 1 + int(samples)
    counts = [len(probe.get("base", {}).get("answers", ())) for probe in evaluation.get("probes", [])]
    return max([1, *counts])
