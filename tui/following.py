"""What a run's events say: stages, rates, samples, metrics of training and a log.

Reads ``events.jsonl`` as it grows; holds no widget, so that it can be tested on recorded events.
"""

import json
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tui.text import one_line
from unlearn_mlx.cli.rendering import STAGE_NAMES
from unlearn_mlx.runs.records import AcceptanceEvent
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.synthetic_data.acceptance import acceptance_sentences

SAMPLES_KEPT = 400
LINES_KEPT = 5000
RATE_WINDOW = 12  # progress events that a rate is measured over

Point = tuple[float, float]


@dataclass
class Stage:
    """One stage's progress. ``state`` is "waiting", "running", "done", "cancelled" or "failed"."""

    state: str = "waiting"
    done: int = 0
    total: int = 0
    unit: str = ""
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
class Sample:
    """A question, or an answer with the reason it was rejected for (empty: accepted)."""

    question: str
    answer: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the log; ``level`` is "info", "stage" or "error"."""

    time: float
    stage: str
    level: str
    text: str

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        return f"{clock} {STAGE_NAMES.get(self.stage, self.stage):10s} {self.text}"


class Following:
    """A run's events so far; ``update`` reads those that came since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self._offset = 0
        self._rest = b""
        self.version = 0  # grows with every event
        self.stages = {stage: Stage() for stage in STAGES}
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self.samples_seen = 0
        self.lines: deque[Line] = deque(maxlen=LINES_KEPT)
        self.lines_seen = 0
        # By step: those that a resumed training went through again count as it went last.
        self._loss: dict[int, float] = {}
        self._retain: dict[int, float] = {}
        self._leak: dict[int, float] = {}
        self.memory = 0  # bytes that mlx took at most
        self.error: str = ""  # of the last attempt
        self.began = 0.0  # clock of the stage that began last
        self.acceptance: dict[str, Any] = {}

    @property
    def loss(self) -> list[Point]:
        """Training loss on the new answers by step, nats a token."""
        return sorted(self._loss.items())

    @property
    def retain(self) -> list[Point]:
        """Divergence from the base on retain rows by step, nats a token."""
        return sorted(self._retain.items())

    @property
    def leak(self) -> list[Point]:
        """Share of held-out questions that leak, by step of validation."""
        return sorted(self._leak.items())

    @property
    def running(self) -> str:
        """The stage that has begun and not ended; empty if none."""
        return next((name for name, stage in self.stages.items() if stage.state == "running"), "")

    def update(self) -> bool:
        """Read what was written since the last look; says whether there was anything."""
        path = self.folder / "events.jsonl"
        try:
            size = path.stat().st_size
            if size < self._offset:  # the run was deleted and made anew
                self._clear()
            if size == self._offset:
                return False
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return False
        self._offset += len(data)
        *rows, self._rest = (self._rest + data).split(b"\n")
        for row in rows:
            try:
                event = json.loads(row)
                self._take(event)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that was cut off, or is no event
        return bool(rows)

    def _take(self, event: dict[str, Any]) -> None:
        self.version += 1
        kind, name = event["kind"], str(event["stage"])
        if kind == "stage" and name in self.stages:
            self._stage(name, event)
        elif kind == "progress" and name in self.stages:
            self._progress(name, event)
        elif kind == "message":
            self._log(event, "info", str(event["text"]))
        elif kind == "validation":
            self._leak[int(event["step"])] = float(event.get("leak_rate", 0.0))
            best = ", the best so far" if event.get("best") else ""
            self._log(
                event,
                "info",
                f"validation at step {event['step']}: {event.get('leak_rate', 0):.0%} of held-out questions "
                f"leak, {event.get('retain_kl', 0):.3f} nats from the base{best}",
            )
        elif kind == "acceptance":
            self.acceptance = event
            for sentence in acceptance_sentences(AcceptanceEvent.model_validate(event)):
                self._log(event, "info", sentence)
        elif kind == "error":
            self.error = one_line(str(event["text"]))
            self._log(event, "error", self.error)

    def _stage(self, name: str, event: dict[str, Any]) -> None:
        state = str(event["state"])
        stage = self.stages[name]
        if state == "running":
            self.error = ""
            self.began = float(event["time"])
            stage.recent.clear()
            if stage.state == "done":  # it is done again
                stage.done = 0
        stage.state = state
        told = f": {event['error']}" if event.get("error") else ""
        self._log(event, "error" if state == "failed" else "stage", state + told)

    def _progress(self, name: str, event: dict[str, Any]) -> None:
        stage = self.stages[name]
        if event["unit"] != stage.unit:
            stage.recent.clear()
        stage.done, stage.total, stage.unit = int(event["done"]), int(event["total"]), str(event["unit"])
        stage.recent.append((float(event["time"]), stage.done))
        if "forget_loss" in event:
            self._loss[stage.done] = float(event["forget_loss"])
            self._retain[stage.done] = float(event["retain_kl"])
        self.memory = int(event.get("memory", self.memory))
        for sample in event.get("samples", []):
            self.samples_seen += 1
            self.samples.append(
                Sample(sample["question"], sample["answer"], sample.get("reason", ""))
                if isinstance(sample, dict)
                else Sample(str(sample))
            )

    def _log(self, event: dict[str, Any], level: str, text: str) -> None:
        self.lines_seen += 1
        self.lines.append(Line(float(event["time"]), str(event["stage"]), level, one_line(text)))
