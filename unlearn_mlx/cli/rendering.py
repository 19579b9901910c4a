"""What the command shows: progress from a run's events, and a run's result."""

import time
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.text import Text

from unlearn_mlx.cli.consoles import data_console
from unlearn_mlx.evaluation.records import Audit, Evaluation
from unlearn_mlx.evaluation.schema import AUDIT_NOTE, verdict_sentences
from unlearn_mlx.reporting.terminal import (
    audit_table,
    control_table,
    evaluation_table,
    plain,
    three_answers,
)
from unlearn_mlx.runs.records import AcceptanceEvent, ErrorEvent, Event, ProgressEvent, StageEvent
from unlearn_mlx.session.progress import STAGE_NAMES, Progress, samples_of, sentences_of
from unlearn_mlx.synthetic_data.acceptance import acceptance_sentences

SAMPLES_IN_LOG = 8  # of the answers or questions that come at a time, where there is no terminal
PLAIN_EVERY = 5  # seconds between two lines of progress where there is no terminal for a bar


class EventView:
    """Shows a run's progress as it goes on."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.run_progress = progress
        self.console = console
        self.tasks: dict[str, TaskID] = {}
        self.last_plain: dict[str, float] = {}
        self.bars = ProgressBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> "EventView":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def update(self) -> None:
        """Show what has been written since the last look."""
        for event in self.run_progress.news():
            self._show(event)

    def _show(self, event: Event) -> None:
        name = STAGE_NAMES.get(event.stage, event.stage)
        if isinstance(event, ProgressEvent):
            if event.stage in self.run_progress.stages:
                self._show_progress(event)
        elif isinstance(event, StageEvent):
            if event.state in ("running", "done", "cancelled"):
                self.console.print(plain(f"{name}: {event.state}"), style="bold")
        elif not isinstance(event, ErrorEvent):  # the command ends with that
            for sentence in sentences_of(event):
                self.console.print(plain(f"  {sentence}"))

    def _show_progress(self, event: ProgressEvent) -> None:
        name, of_stage = STAGE_NAMES[event.stage], self.run_progress.stages[event.stage]
        done, total, unit = event.done, event.total, event.unit
        key = f"{name}/{unit}"
        facts = [f"{of_stage.rate:.1f} a second"] if of_stage.rate else []
        if event.forget_loss is not None:
            facts.append(f"loss {event.forget_loss:.2f}, {event.retain_kl or 0:.3f} nats from the base")
        if self.console.is_terminal:
            if key not in self.tasks:
                self.tasks[key] = self.bars.add_task(f"{name}: {unit}", total=total, facts="")
            self.bars.update(self.tasks[key], completed=done, total=total, facts=", ".join(facts))
        elif time.monotonic() - self.last_plain.get(key, 0.0) > PLAIN_EVERY or done == total:
            self.last_plain[key] = time.monotonic()
            if of_stage.rate and done < total:
                facts.insert(1, f"{(total - done) / of_stage.rate:.0f} s left")
            told = f" ({', '.join(facts)})" if facts else ""
            self.console.print(plain(f"  {name}: {done} of {total} {unit}{told}"))
        samples = list(samples_of(event))
        # A terminal shows them as they come, above the bars; a log would be little else.
        for sample in samples if self.console.is_terminal else samples[:SAMPLES_IN_LOG]:
            said = "" if sample.answer is None else f" -> {sample.answer or '(nothing)'}"
            is_told = sample.answer is not None or sample.reason
            verdict = f" [{f'rejected: {sample.reason}' if sample.reason else 'accepted'}]" if is_told else ""
            self.console.print(plain(f"    {sample.question}{said}{verdict}"), style="dim")


def show_result(evaluation: Evaluation, stream: TextIO | None = None) -> None:
    """The table and three questions answered by both."""
    console = data_console(stream)
    console.print(evaluation_table(evaluation, console.width))
    if noise := control_table(evaluation):
        console.print(noise)
    for sentence in verdict_sentences(evaluation):
        console.print(plain(sentence))
    for question, base, adapter in three_answers(evaluation):
        console.print()
        console.print(plain(question), style="bold")
        console.print(Text.assemble("  base:    ", plain(" ".join(base.split()))))
        console.print(Text.assemble("  adapter: ", plain(" ".join(adapter.split()))))


def show_acceptance(events: Iterable[Event], stream: TextIO | None = None) -> None:
    """How many of the guarded answers were accepted when they were made last; nothing of an import."""
    console = data_console(stream)
    for event in [event for event in events if isinstance(event, AcceptanceEvent)][-1:]:
        console.print()
        for sentence in acceptance_sentences(event):
            console.print(plain(sentence))


def show_audit(audit: Audit, stream: TextIO | None = None) -> None:
    """What was tried on the adapter, how the model did after each, and what that means."""
    console = data_console(stream)
    console.print(audit_table(audit))
    console.print(AUDIT_NOTE, style="dim")
    console.print(plain(audit.text), style="bold")
