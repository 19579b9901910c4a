"""What an evaluation and an audit hold, what the metrics are called, and how they are told."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field, RootModel, model_validator

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import ProbeRow
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.runs.records import (
    RESTORE,
    Count,
    ModelIdentity,
    Record,
    SettingsOfRun,
    checked,
    read_record,
)

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


def is_share(metric: str) -> bool:
    """Whether a metric is a share of probes, to be read as a percentage."""
    return not any(word in metric.lower() for word in _MEASURES)


def _shares_are_shares(metrics: dict[str, float]) -> dict[str, float]:
    for name, value in metrics.items():
        if is_share(name) and not 0 <= value <= 1:
            raise ValueError(f"holds {value:g} for '{name}', which should be between 0 and 1")
    return metrics


MetricValues = Annotated[dict[str, float], AfterValidator(_shares_are_shares)]
Share = Annotated[float, Field(ge=0, le=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]  # of an interval, the lower first


class Outcome(Record):
    """What a model said to a probe: its answers, the greedy one first, or what it chose."""

    answers: list[str] = Field(default=[])
    leaks: list[bool] = Field(default=[])  # whether each answer shows the knowledge
    leaked: bool | None = None  # whether any does; None where nothing was asked openly
    rouge: float | None = None
    entropy: float | None = None
    distinct_bigrams: float | None = None
    chosen: str | None = None
    right: bool | None = None  # whether the right one was chosen; None where there was no choice
    labels: list[str] = Field(default=[])  # what each answer was taken for; empty where that was not asked

    @model_validator(mode="after")
    def _belong_together(self) -> "Outcome":
        if len(self.leaks) != len(self.answers):
            raise ValueError("should have as many 'leaks' as 'answers'")
        if self.labels and len(self.labels) != len(self.answers):
            raise ValueError("should have as many 'labels' as 'answers'")
        return self


class ScoredProbe(ProbeRow):
    """A probe with what base and adapter said to it."""

    base: Outcome = Outcome()
    adapter: Outcome = Outcome()

    def of(self, whose: str) -> Outcome:
        """What "base" or "adapter" said."""
        return self.base if whose == "base" else self.adapter

    def shows(self, whose: str) -> bool | None:
        """Whether "base" or "adapter" shows that it knows the answer; None where it was not asked."""
        return self.of(whose).right if self.kind == "choice" else self.of(whose).leaked


class Intervals(Record):
    """The 95 % intervals of a metric: of the base's, the adapter's and their difference."""

    base: Ends | None = None
    adapter: Ends | None = None
    difference: Ends | None = None


class NearestTraining(Record):
    """The probe that is nearest to a training question, 0 to 100, and how many reach the limit."""

    similarity: float = Field(default=0.0, validation_alias=AliasChoices("similarity", "likeness"))
    probe: str = ""
    question: str = ""
    limit: float | int = 0
    near: Count | None = None
    probes: Count = 0


class Verdict(Record):
    """What an adapter is called, the reason for it, and what else must be said."""

    name: str
    reason: str
    notes: list[str] = Field(default=[])


class Metrics(Record):
    """Base and adapter in numbers, as they lie in a shipped adapter's metrics.json."""

    model: ModelIdentity | None = None
    settings: SettingsOfRun = Field(default={})
    versions: dict[str, str] = Field(default={})
    command: str = ""
    samples: Count = 0  # sampled answers a probe, beside the greedy one
    base: MetricValues
    adapter: MetricValues
    intervals: dict[str, Intervals] = Field(default={})
    nearest_training_question: NearestTraining | None = None
    verdict: Verdict | None = None

    def of(self, whose: str) -> dict[str, float]:
        """The metrics of "base" or "adapter"."""
        return self.base if whose == "base" else self.adapter


class Evaluation(Metrics):
    """A run's evaluation.json: the metrics, and every probe that they come from."""

    probes: list[ScoredProbe]


class KnownResults(RootModel[dict[str, Outcome]]):
    """A model's results by the probe's id, as the cache keeps those of bases."""


class AuditRow(Record):
    """How the model does after something was done to it; shares of probes.

    ``group`` is "plain", "export", "relearning", "strength" or "samples". ``leak`` counts the open
    probes on the topic that leak in a greedy or one sampled answer; for samples it is leak@k.
    ``control`` is multiple choice on an invented subject, ``control_leak`` its open questions: what
    rises there was taught or guessed, not remembered.
    """

    name: str
    group: str = ""
    leak: Share
    choice: Share | None = None
    neighbours: Share | None = None
    control: Share | None = None
    control_leak: Share | None = None

    def share(self, column: str) -> float | None:
        """The share in one of ``AUDIT_COLUMNS``."""
        found: float | None = getattr(self, column)
        return found


class Audit(Record):
    """A run's audit.json. ``key`` says which adapter and probes its rows are of."""

    key: str = ""
    rows: list[AuditRow]
    text: str = ""


def read_evaluation(run_folder: Path) -> Evaluation:
    """A run's evaluation.

    Raises:
        UserError: where there is none yet, or it is damaged.
    """
    path = run_folder / "evaluation.json"
    if not path.exists():
        raise UserError(f"{run_folder} is not evaluated yet: run 'unlearn evaluate'")
    return read_record(path, Evaluation, f"restore it, or run 'unlearn evaluate --again {run_folder}'")


def read_metrics(path: Path) -> Metrics:
    """The metrics of an adapter; an ``Evaluation`` where the file holds every probe.

    Raises:
        UserError: where the file is missing or damaged.
    """
    value = read_json(path)
    kind = Evaluation if isinstance(value, dict) and "probes" in value else Metrics
    return checked(kind, value, f"{path} is damaged", RESTORE)


def read_audit(run_folder: Path) -> Audit | None:
    """A run's audit; None where none was made.

    Raises:
        UserError: where it is damaged.
    """
    path = run_folder / "audit.json"
    if not path.exists():
        return None
    return read_record(path, Audit, f"restore it, or run 'unlearn audit --again {run_folder}'")


def verdict_sentences(metrics: Metrics) -> list[str]:
    """What an evaluation calls the adapter, and why; empty where it judged nothing."""
    judged = metrics.verdict
    if judged is None:
        return []
    return [
        f"{judged.name.capitalize()}: {judged.reason}.",
        *(f"{note[:1].upper()}{note[1:]}." for note in judged.notes),
    ]


def written(metric: str, value: float) -> str:
    """A metric's value as it is shown."""
    return f"{value:.0%}" if is_share(metric) else f"{value:.2f}"


def interval_of(metrics: Metrics, metric: str, whose: str) -> tuple[float, float] | None:
    """The 95 % interval of "base", "adapter" or their "difference"; None where there is none."""
    known = metrics.intervals.get(metric)
    ends: list[float] | None = getattr(known, whose) if known else None
    return (ends[0], ends[1]) if ends else None


def with_interval(metrics: Metrics, metric: str, whose: str) -> str:
    """A metric of "base" or "adapter" as it is shown, with its interval where there is one."""
    value = written(metric, metrics.of(whose)[metric])
    ends = interval_of(metrics, metric, whose)
    if not ends:
        return value
    if is_share(metric):
        return f"{value} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    return f"{value} [{ends[0]:.2f}, {ends[1]:.2f}]"


def change_written(metrics: Metrics, metric: str) -> str:
    """How much a metric changed from base to adapter, with its 95 % interval where there is one."""

    def signed(value: float) -> str:
        text = f"{100 * value:+.0f}" if is_share(metric) else f"{value:+.2f}"
        return text.replace("-", "−")

    change = signed(metrics.adapter[metric] - metrics.base[metric])
    ends = interval_of(metrics, metric, "difference")
    return f"{change} [{signed(ends[0])}, {signed(ends[1])}]" if ends else change


def kept(evaluation: Evaluation, scope: str) -> float | None:
    """What the adapter knows in a scope for each thing that the base knows; None where that is nothing.

    Counted over all probes of the scope; more than 1 where the adapter knows more.
    """
    probes = [probe for probe in evaluation.probes if probe.scope == scope]
    base = sum(bool(probe.shows("base")) for probe in probes)
    adapter = sum(bool(probe.shows("adapter")) for probe in probes)
    return adapter / base if base else None
