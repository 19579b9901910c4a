"""How far a run is, as its events say: stages, rates, samples, curves of training and a log.

Reads ``events.jsonl`` as it grows. Every face shows a run's progress through this.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn_mlx.runs.files import parsed
from unlearn_mlx.runs.records import (
    AcceptanceEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    ProgressEvent,
    StageEvent,
    ValidationEvent,
    curve,
    event_of,
    forget_later,
)
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.synthetic_data.acceptance import acceptance_sentences
from unlearn_mlx.text.printable import one_line

STAGE_NAMES = {
    "questions": "Questions",
    "answers": "Answers",
    "train": "Training",
    "evaluate": "Evaluation",
    "audit": "Audit",
    "mend": "Mending",
}
SAMPLES_KEPT = 400
LINES_KEPT = 5000
RATE_WINDOW = 12  # progress events that a rate is measured over

Point = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """A question, or an answer with the reason it was rejected for (empty: accepted)."""

    question: str
    answer: str | None = None
    reason: str = ""


@dataclass
class StageProgress:
    """One stage's progress. ``state`` is "waiting", "running", "done", "cancelled" or "failed".

    ``counts`` is how many are done of how many, by unit; ``done``, ``total`` and ``unit`` are the part
    that is under way, ``samples`` what it made last.
    """

    state: str = "waiting"
    done: int = 0
    total: int = 0
    unit: str = ""
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    message: str = ""
    drafts: str = ""  # how far the round is that questions are written in
    recent: deque[Point] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW))  # time, done

    @property
    def rate(self) -> float:
        """Units a second over the last events; 0 where that is not known yet."""
        if len(self.recent) < 2:
            return 0.0
        (first, before), (last, now) = self.recent[0], self.recent[-1]
        return (now - before) / max(0.1, last - first)

    @property
    def seconds_left(self) -> float | None:
        """For what is under way, or None where the rate is not known."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True)
class LogLine:
    """A line of the log; ``level`` is "info", "stage" or "error"."""

    time: float
    stage: str
    level: str
    text: str

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        return f"{clock} {STAGE_NAMES.get(self.stage, self.stage):10s} {self.text}"


class Progress:
    """A run's events so far; ``update`` reads those that came since."""

    def __init__(self, folder: Path, only_new: bool = False) -> None:
        """``only_new`` leaves out what is there already, as from an earlier attempt."""
        self.folder = folder
        self._clear()
        if only_new and self._path.exists():
            self._offset = self._path.stat().st_size

    @property
    def _path(self) -> Path:
        return self.folder / "events.jsonl"

    def _clear(self) -> None:
        self._offset = 0
        self._rest = b""
        self.version = 0  # grows with every event
        self.stages = {stage: StageProgress() for stage in STAGE_NAMES}
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self.samples_seen = 0
        self.lines: deque[LogLine] = deque(maxlen=LINES_KEPT)
        self.lines_seen = 0
        # By step: those that a resumed training went through again count as it went last.
        self._steps: dict[int, ProgressEvent] = {}
        self._validations: dict[int, ValidationEvent] = {}
        self.memory = self.cache = self.granted = 0  # bytes: mlx's peak, what it keeps, what the device has
        self.error: str = ""  # of the last attempt
        self.error_code = 0  # what the process that told of the error ended with
        self.began = 0.0  # clock of the stage that began last
        self.needed = 0  # bytes that the run takes, by its plan
        self.acceptance: AcceptanceEvent | None = None

    @property
    def training_events(self) -> list[Event]:
        """What training logged and what validations found, each step as it went last."""
        return [*self._steps.values(), *self._validations.values()]

    @property
    def loss(self) -> Sequence[Point]:
        """Training loss on the new answers by step, nats a token."""
        return curve(self._steps, "forget_loss")

    @property
    def retain(self) -> Sequence[Point]:
        """Divergence from the base on retain rows by step, nats a token."""
        return curve(self._steps, "retain_kl")

    @property
    def negative_preference(self) -> Sequence[Point]:
        """Loss on what is to become unlikely, by step."""
        return curve(self._steps, "negative_preference")

    @property
    def leak(self) -> Sequence[Point]:
        """Share of held-out questions that leak, by step of validation; 0 where none was written."""
        found = sorted(self._validations.items())
        return [(step, event.leak_rate or 0.0) for step, event in found]

    def made(self, stage: str) -> str:
        """What a stage has made, in words; empty where its events do not say."""
        known = self.stages[stage]
        counts = {unit.rpartition(" ")[0]: done for unit, (done, _) in known.counts.items()}
        if stage == "questions" and counts:
            return f"{sum(counts.values())} questions, {counts.get('topic', 0)} on the topic"
        if stage == "answers" and "guarded" in counts:
            told = f" ({self.acceptance.rate:.0%} of those drawn)" if self.acceptance else ""
            return f"{counts['guarded']} guarded{told}, {counts.get('retain', 0)} to keep"
        best = [event for event in self._validations.values() if event.best]
        if stage == "train" and best:
            return f"step {best[-1].step} of {known.total} kept: {best[-1].leak_rate or 0:.0%} held-out leaks"
        return ""

    @property
    def running(self) -> str:
        """The stage that has begun and not ended, of those that a run is whole with; empty if none."""
        return next((name for name in STAGES if self.stages[name].state == "running"), "")

    def update(self) -> bool:
        """Read what was written since the last look; says whether there was anything."""
        return bool(self.news())

    def news(self) -> list[Event]:
        """Read what was written since the last look, and hand it on; lines that are no event are left out."""
        taken = []
        for row in self._new_rows():
            try:
                event = event_of(parsed(row.decode()))
            except ValueError:
                continue  # a line that was cut off, or is no event
            self._take(event)
            taken.append(event)
        return taken

    def _new_rows(self) -> list[bytes]:
        try:
            size = self._path.stat().st_size
            if size < self._offset:  # the run was deleted and made anew
                self._clear()
            if size == self._offset:
                return []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        self._offset += len(data)
        *rows, self._rest = (self._rest + data).split(b"\n")
        return rows

    def _take(self, event: Event) -> None:
        self.version += 1
        if isinstance(event, StageEvent):
            self._take_stage(event)
        elif isinstance(event, ProgressEvent):
            self._take_progress(event)
        elif isinstance(event, ValidationEvent):
            self._validations[event.step] = event
            self._log(event, "info")
        elif isinstance(event, AcceptanceEvent):
            self.acceptance = event
            self._log(event, "info")
        elif isinstance(event, MessageEvent):
            self.needed = event.needed or self.needed
            if event.stage in self.stages:
                self.stages[event.stage].message = event.text
            self._log(event, "info")
        elif isinstance(event, ErrorEvent):
            self.error, self.error_code = one_line(event.text), event.exit_code
            self._log(event, "error")

    def _take_stage(self, event: StageEvent) -> None:
        stage = self.stages.get(event.stage)
        if stage is None:
            return
        if event.state == "running":
            self.error = ""
            self.began = event.time
            stage.recent.clear()
            if stage.state == "done":  # it is done again
                stage.done = 0
                stage.counts.clear()
        stage.state = event.state
        self._log(event, "error" if event.state == "failed" else "stage")

    def _take_progress(self, event: ProgressEvent) -> None:
        stage = self.stages.get(event.stage)
        if stage is None:
            return
        if event.unit != stage.unit:
            stage.recent.clear()
        stage.drafts = f"{event.drafted}/{event.drafts} drafts" if event.drafts else ""
        stage.done, stage.total, stage.unit = event.done, event.total, event.unit
        stage.counts[stage.unit] = stage.done, stage.total
        if len(stage.recent) > 1 and stage.recent[-1][1] == stage.done:
            stage.recent.pop()  # nothing more has come: the rate sinks, and is not forgotten
        stage.recent.append((event.time, stage.done))
        if event.forget_loss is not None:
            forget_later(self._steps, stage.done)
            forget_later(self._validations, stage.done)
            self._steps[stage.done] = event
        self.memory = event.memory or self.memory
        self.cache = event.cache or self.cache
        self.granted = event.granted or self.granted
        stage.samples = list(samples_of(event))
        self.samples.extend(stage.samples)
        self.samples_seen += len(stage.samples)

    def _log(self, event: Event, level: str) -> None:
        for text in sentences_of(event):
            self.lines_seen += 1
            self.lines.append(LogLine(event.time, event.stage, level, one_line(text)))


def samples_of(event: ProgressEvent) -> Iterator[Sample]:
    """The questions, or the answers with their verdicts, that came with an event of progress."""
    for sample in event.samples:
        if isinstance(sample, str):
            yield Sample(sample)
        else:
            yield Sample(sample.question, sample.answer, sample.reason)


def sentences_of(event: Event) -> list[str]:
    """What an event says that is no progress, a line each."""
    if isinstance(event, AcceptanceEvent):
        return acceptance_sentences(event)
    if isinstance(event, ValidationEvent):
        best = ", the best so far" if event.best else ""
        return [
            f"validation at step {event.step}: {event.leak_rate or 0:.0%} of held-out questions "
            f"leak, {event.retain_kl or 0:.3f} nats from the base{best}"
        ]
    if isinstance(event, StageEvent):
        return [event.state + (f": {event.error}" if event.error else "")]
    return [event.text] if isinstance(event, MessageEvent | ErrorEvent) else []
