"""How an evaluation is read: what its metrics are called, which way is good, what of the base is kept."""

from pathlib import Path
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_json

# Name in evaluation.json, how it is called, whether less is better.
METRICS = (
    ("topic/open leak", "topic: open questions that leak in any answer", True),
    ("topic/adversarial leak", "topic: adversarial questions that leak", True),
    ("topic/named", "topic: answers that name it unasked", True),
    ("topic/choice", "topic: multiple choice right", True),
    ("topic/cloze leak", "topic: sentences finished right", True),
    ("neighbour/choice", "neighbours: multiple choice right", False),
    ("neighbour/open known", "neighbours: open questions known", False),
    ("neighbour/adversarial known", "neighbours: adversarial questions known", False),
    ("general/choice", "general knowledge: multiple choice right", False),
    ("general/open known", "general knowledge: open questions known", False),
    ("topic/distinct bigrams", "fluency: distinct bigrams on the topic", False),
    ("general/distinct bigrams", "fluency: distinct bigrams elsewhere", False),
    ("neutral/entropy", "fluency: n-gram entropy on everyday things, bits", False),
    ("neutral/divergence", "divergence from the base on everyday things, nats a token", True),
)

SCOPES = {"topic": "the topic", "neighbour": "neighbours of the topic", "general": "general knowledge"}

# Columns of an audit's table: key in its rows, heading.
AUDIT_COLUMNS = {
    "leak": "topic leaks",
    "choice": "topic’s choice",
    "neighbours": "neighbours’ choice",
    "control_leak": "invented topic leaks",
    "control": "invented topic’s choice",
}

# Metrics with one of these words in their names are no shares of probes.
_MEASURES = ("bigrams", "entropy", "rouge", "divergence", "membership")


def read_evaluation(run_folder: Path) -> dict[str, Any]:
    """A run's evaluation.

    Raises:
        UserError: where there is none yet.
    """
    path = run_folder / "evaluation.json"
    if not path.exists():
        raise UserError(f"{run_folder} is not evaluated yet: run 'unlearn evaluate'")
    evaluation: dict[str, Any] = read_json(path)
    return evaluation


def verdict_sentences(evaluation: dict[str, Any]) -> list[str]:
    """What the evaluation calls the adapter, and why; empty where it judged nothing."""
    judged = evaluation.get("verdict")
    if not judged:
        return []
    return [
        f"{judged['name'].capitalize()}: {judged['reason']}.",
        *(f"{note[:1].upper()}{note[1:]}." for note in judged["notes"]),
    ]


def is_share(metric: str) -> bool:
    """Whether a metric is a share of probes, to be read as a percentage."""
    return not any(word in metric.lower() for word in _MEASURES)


def written(metric: str, value: float) -> str:
    """A metric's value as it is shown."""
    return f"{value:.0%}" if is_share(metric) else f"{value:.2f}"


def interval_of(evaluation: dict[str, Any], metric: str, whose: str) -> tuple[float, float] | None:
    """The 95 % interval of "base", "adapter" or their "difference"; None where the evaluation has none."""
    ends = evaluation.get("intervals", {}).get(metric, {}).get(whose)
    return (float(ends[0]), float(ends[1])) if ends else None


def with_interval(evaluation: dict[str, Any], metric: str, whose: str) -> str:
    """A metric of "base" or "adapter" as it is shown, with its interval where there is one."""
    value = written(metric, evaluation[whose][metric])
    ends = interval_of(evaluation, metric, whose)
    if not ends:
        return value
    if is_share(metric):
        return f"{value} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    return f"{value} [{ends[0]:.2f}, {ends[1]:.2f}]"


def change_written(evaluation: dict[str, Any], metric: str) -> str:
    """How much a metric changed from base to adapter, with its 95 % interval where there is one."""

    def signed(value: float) -> str:
        text = f"{100 * value:+.0f}" if is_share(metric) else f"{value:+.2f}"
        return text.replace("-", "−")

    change = signed(evaluation["adapter"][metric] - evaluation["base"][metric])
    ends = interval_of(evaluation, metric, "difference")
    return f"{change} [{signed(ends[0])}, {signed(ends[1])}]" if ends else change


def shows_it(probe: dict[str, Any], whose: str) -> bool | None:
    """Whether "base" or "adapter" shows that it knows a probe's answer; None where it was not asked."""
    outcome = probe.get(whose, {})
    key = "right" if probe["kind"] == "choice" else "leaked"
    return bool(outcome[key]) if key in outcome else None


def kept(evaluation: dict[str, Any], scope: str) -> float | None:
    """What the adapter knows in a scope for each thing that the base knows; None where that is nothing.

    Counted over all probes of the scope; more than 1 where the adapter knows more.
    """
    probes = [probe for probe in evaluation["probes"] if probe["scope"] == scope]
    base = sum(bool(shows_it(probe, "base")) for probe in probes)
    adapter = sum(bool(shows_it(probe, "adapter")) for probe in probes)
    return adapter / base if base else None
