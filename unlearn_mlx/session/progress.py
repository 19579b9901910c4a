"""How far a run is, as its events say: stages, rates, samples, curves of training and a log.

Reads ``events.jsonl`` as it grows. Every face shows a run's progress through this.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_mlx.runs.run import AFTER, STAGES
from unlearn_mlx.synthetic_data.acceptance import acceptance_sentences
from unlearn_mlx.text.printable import one_line

STAGE_NAMES = {
    "questions": "Questions",
    "answers": "Answers",
    "train": "Training",
    "evaluate": "Evaluation",
    "audit": "Audit",
}
SAMPLES_KEPT = 400
LINES_KEPT = 5000
RATE_WINDOW = 12  # progress events that a rate is measured over
OLD_KEYS = {"avoidance": "negative_preference"}  # as earlier versions wrote them

Point = tuple[float, float]
Event = dict[str, Any]


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
        self.stages = {stage: StageProgress() for stage in (*STAGES, *AFTER)}
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self.samples_seen = 0
        self.lines: deque[LogLine] = deque(maxlen=LINES_KEPT)
        self.lines_seen = 0
        # By step: those that a resumed training went through again count as it went last.
        self._steps: dict[int, Event] = {}
        self._validations: dict[int, Event] = {}
        self.memory = 0  # bytes that mlx took at most
        self.error: str = ""  # of the last attempt
        self.error_code = 0  # what the process that told of the error ended with
        self.began = 0.0  # clock of the stage that began last
        self.acceptance: Event = {}

    @property
    def training_events(self) -> list[Event]:
        """What training logged and what validations found, each step as it went last."""
        return [*self._steps.values(), *self._validations.values()]

    @property
    def loss(self) -> list[Point]:
        """Training loss on the new answers by step, nats a token."""
        return _curve(self._steps, "forget_loss")

    @property
    def retain(self) -> list[Point]:
        """Divergence from the base on retain rows by step, nats a token."""
        return _curve(self._steps, "retain_kl")

    @property
    def negative_preference(self) -> list[Point]:
        """Loss on what is to become unlikely, by step."""
        return _curve(self._steps, "negative_preference")

    @property
    def leak(self) -> list[Point]:
        """Share of held-out questions that leak, by step of validation; 0 where none was written."""
        found = sorted(self._validations.items())
        return [(step, float(event.get("leak_rate", 0.0))) for step, event in found]

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
                event = {OLD_KEYS.get(key, key): value for key, value in json.loads(row).items()}
                self._take(event)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that was cut off, or is no event
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
        kind, name = event["kind"], str(event["stage"])
        if kind == "stage" and name in self.stages:
            self._take_stage(name, event)
        elif kind == "progress" and name in self.stages:
            self._take_progress(name, event)
        elif kind == "validation":
            self._validations[int(event["step"])] = event
            self._log(event, "info")
        elif kind in ("message", "acceptance"):
            if kind == "acceptance":
                self.acceptance = event
            elif name in self.stages:
                self.stages[name].message = str(event["text"])
            self._log(event, "info")
        elif kind == "error":
            self.error, self.error_code = one_line(str(event["text"])), int(event.get("exit_code", 0))
            self._log(event, "error")

    def _take_stage(self, name: str, event: Event) -> None:
        state = str(event["state"])
        stage = self.stages[name]
        if state == "running":
            self.error = ""
            self.began = float(event["time"])
            stage.recent.clear()
            if stage.state == "done":  # it is done again
                stage.done = 0
                stage.counts.clear()
        stage.state = state
        self._log(event, "error" if state == "failed" else "stage")

    def _take_progress(self, name: str, event: Event) -> None:
        stage = self.stages[name]
        if event["unit"] != stage.unit:
            stage.recent.clear()
        stage.done, stage.total, stage.unit = int(event["done"]), int(event["total"]), str(event["unit"])
        stage.counts[stage.unit] = stage.done, stage.total
        stage.recent.append((float(event["time"]), stage.done))
        if "forget_loss" in event:
            self._steps[stage.done] = event
        self.memory = int(event.get("memory", self.memory))
        stage.samples = list(samples_of(event))
        self.samples.extend(stage.samples)
        self.samples_seen += len(stage.samples)

    def _log(self, event: Event, level: str) -> None:
        for text in sentences_of(event):
            self.lines_seen += 1
            self.lines.append(LogLine(float(event["time"]), str(event["stage"]), level, one_line(text)))


def samples_of(event: Event) -> Iterator[Sample]:
    """The questions, or the answers with their verdicts, that came with an event of progress."""
    for sample in event.get("samples", []):
        if isinstance(sample, dict):
            yield Sample(sample["question"], sample["answer"], sample.get("reason", ""))
        else:
            yield Sample(str(sample))


def sentences_of(event: Event) -> list[str]:
    """What an event says that is no progress, a line each."""
    kind = event["kind"]
    if kind == "acceptance":
        return acceptance_sentences(event)
    if kind == "validation":
        best = ", the best so far" if event.get("best") else ""
        return [
            f"validation at step {event['step']}: {event.get('leak_rate', 0):.0%} of held-out questions "
            f"leak, {event.get('retain_kl', 0):.3f} nats from the base{best}"
        ]
    if kind == "stage":
        return [str(event["state"]) + (f": {event['error']}" if event.get("error") else "")]
    return [str(event["text"])]


def _curve(events: dict[int, Event], measure: str) -> list[Point]:
    return [(step, float(event[measure])) for step, event in sorted(events.items()) if measure in event]
