"""What evaluation.json, metrics.json and audit.json hold, as types."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AliasChoices, Field, RootModel, model_validator

from unlearn_mlx.evaluation.keys import OPEN_KNOWN, OPEN_LEAK, any_of, is_share
from unlearn_mlx.evaluation.probes import ProbeRow
from unlearn_mlx.runs.records import Computation, Count, ModelIdentity, Record, SettingsOfRun

Value = TypeVar("Value")


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

    def shows(self, whose: str, answers: int | None = None) -> bool | None:
        """Whether "base" or "adapter" shows that it knows the answer; None where it was not asked.

        By any of its answers, or of the first ``answers``.
        """
        outcome = self.of(whose)
        if self.kind == "choice":
            return outcome.right
        if answers is not None and outcome.leaks:
            return any(outcome.leaks[:answers])
        return outcome.leaked


class Intervals(Record):
    """The 95 % intervals of a metric: of the base's, the adapter's, their difference, a random adapter's."""

    base: Ends | None = None
    adapter: Ends | None = None
    difference: Ends | None = None
    random: Ends | None = None

    def of(self, whose: str) -> tuple[float, float] | None:
        """The interval of one of them; None where there is none."""
        ends: list[float] | None = getattr(self, whose)
        return (ends[0], ends[1]) if ends else None


class Measured(Record):
    """Metrics of base and adapter, by their keys."""

    base: MetricValues
    adapter: MetricValues
    intervals: dict[str, Intervals] = Field(default={})

    def of(self, whose: str) -> dict[str, float]:
        """The metrics of "base" or "adapter", or of what else was measured beside them."""
        found: dict[str, float] = getattr(self, whose)
        return found


class Control(Measured):
    """What a random adapter of the same norm does, and the two others on the same few probes."""

    probes: Count
    random: MetricValues


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


class Metrics(Measured):
    """Base and adapter in numbers, as they lie in a shipped adapter's metrics.json."""

    model: ModelIdentity | None = None
    adapter_sha256: str = ""  # of the adapter that was measured; earlier versions wrote none
    settings: SettingsOfRun = Field(default={})
    versions: dict[str, str] = Field(default={})
    device: str = ""
    computation: Computation | None = None
    command: str = ""
    samples: Count | None = None  # sampled answers a probe, beside the greedy one
    control: Control | None = None
    nearest_training_question: NearestTraining | None = None
    verdict: Verdict | None = None

    @model_validator(mode="after")
    def _keys_say_how_many_answers(self) -> "Metrics":
        """Keys that earlier versions wrote say no number: it is that of the answers of a question."""
        old = [OPEN_LEAK, *OPEN_KNOWN.values()]
        if any(key in self.base for key in old):
            names = {key: any_of(key, self._answers()) for key in old}
            self.base, self.adapter = _renamed(self.base, names), _renamed(self.adapter, names)
            if self.intervals:
                self.intervals = _renamed(self.intervals, names)
        return self

    def _answers(self) -> int:
        samples = self.samples if self.samples is not None else self.settings.get("samples")
        if isinstance(samples, int):
            return 1 + samples
        return max([1, *(len(probe.base.answers) for probe in self._scored())])

    def _scored(self) -> Sequence[ScoredProbe]:
        return ()


def _renamed(values: dict[str, Value], names: dict[str, str]) -> dict[str, Value]:
    return {names.get(key, key): value for key, value in values.items()}


class Evaluation(Metrics):
    """A run's evaluation.json: the metrics, and every probe that they come from."""

    # How scores were made (scoring.SCORES); files without it are of the second way.
    scores: str = "2: choices in float32"
    probes: list[ScoredProbe]

    def _scored(self) -> Sequence[ScoredProbe]:
        return self.probes


class KnownResults(RootModel[dict[str, Outcome]]):
    """A model's results by the probe's id, as the cache keeps those of bases."""


class AuditRow(Record):
    """How the model does after something was done to it; shares of probes.

    ``group`` is "plain", "export", "relearning", "strength" or "samples". ``leak`` counts the open
    questions on the topic that leak in a greedy or one sampled answer, in any of k for samples.
    ``control`` is multiple choice on an invented subject, ``control_leak`` its open questions: what
    rises there was taught or guessed, not remembered. ``questions`` of the topic were asked openly.
    """

    name: str
    group: str = ""
    leak: Share
    choice: Share | None = None
    neighbours: Share | None = None
    control: Share | None = None
    control_leak: Share | None = None
    questions: Count | None = None

    def share(self, column: str) -> float | None:
        """The share in one of the table's columns, by its field's name."""
        found: float | None = getattr(self, column)
        return found


class Audit(Record):
    """A run's audit.json. ``key`` says which adapter and probes its rows are of."""

    key: str = ""
    adapter_sha256: str = ""  # earlier versions wrote none
    rows: list[AuditRow]
    text: str = ""

    def at_strength(self, strength: float) -> AuditRow | None:
        """What was measured with so much of the adapter, where that was tried."""
        name = at_strength(strength)
        return next((row for row in self.rows if row.name == name), None)


def at_strength(strength: float) -> str:
    """What an audit calls its row of a strength: 0 is the base, 1 the adapter as it is."""
    return {0.0: "base", 1.0: "adapter"}.get(strength, f"strength {strength:g}")
