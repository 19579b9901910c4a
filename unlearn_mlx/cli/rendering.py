"""What the command shows: progress from a run's events, tables, and how much of a text is trusted."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unlearn_mlx.evaluation.findings import change_in_words
from unlearn_mlx.evaluation.records import Audit, Evaluation, Measured, Metrics
from unlearn_mlx.evaluation.schema import (
    AUDIT_COLUMNS,
    AUDIT_NOTE,
    change_written,
    control_rows,
    control_title,
    shown_metrics,
    verdict_sentences,
    with_interval,
)
from unlearn_mlx.reporting.transcripts import printable
from unlearn_mlx.runs.records import AcceptanceEvent, Event
from unlearn_mlx.synthetic_data.acceptance import acceptance_sentences

STAGE_NAMES = {
    "questions": "Questions",
    "answers": "Answers",
    "train": "Training",
    "evaluate": "Evaluation",
    "audit": "Audit",
}

WIDTH_FOR_CHANGE = 110
SAMPLES_SHOWN = 8  # of the answers or questions that come at a time


def plain(text: str) -> Text:
    """Text from a model, a topic or a file, as it stands: no markup, no control characters."""
    return Text(printable(text))


def stderr_console() -> Console:
    """The console for progress: colours only on a terminal, and never where NO_COLOR is set."""
    return Console(stderr=True, highlight=False)


class EventView:
    """Shows a run's events as they are written."""

    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self.console = console
        # What lies there from an earlier attempt has been shown then.
        self.offset = path.stat().st_size if path.exists() else 0
        self.rest = b""
        self.error: dict[str, Any] | None = None
        self.tasks: dict[str, TaskID] = {}
        self.last_plain: dict[str, float] = {}
        self.first_seen: dict[str, tuple[float, int]] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> "EventView":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self) -> None:
        """Show what has been written since the last look."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                self._show(json.loads(line))
            except ValueError:
                continue

    def _show(self, event: dict[str, Any]) -> None:
        kind, stage = event.get("kind"), str(event.get("stage"))
        name = STAGE_NAMES.get(stage, stage)
        if kind == "progress":
            self._show_progress(name, event)
        elif kind == "stage" and event.get("state") in ("running", "done", "cancelled"):
            self.console.print(plain(f"{name}: {event['state']}"), style="bold")
        elif kind == "message":
            self.console.print(plain(f"  {event.get('text', '')}"))
        elif kind == "validation":
            best = ", the best so far" if event.get("best") else ""
            self.console.print(
                plain(
                    f"  validation at step {event.get('step')}: {event.get('leak_rate', 0):.0%} of held-out "
                    f"questions leak, {event.get('retain_kl', 0):.3f} nats from the base{best}"
                )
            )
        elif kind == "acceptance":
            for sentence in acceptance_sentences(AcceptanceEvent.model_validate(event)):
                self.console.print(plain(f"  {sentence}"))
        elif kind == "error":
            self.error = event

    def _show_progress(self, name: str, event: dict[str, Any]) -> None:
        done, total, unit = event["done"], event["total"], event["unit"]
        key = f"{name}/{unit}"
        # What was done before the first look is not part of the rate: it may come from an earlier run.
        since, at_first = self.first_seen.setdefault(key, (event["time"], done))
        rate = (done - at_first) / max(0.1, event["time"] - since)
        facts = [f"{rate:.1f} a second"] if rate else []
        if "forget_loss" in event:
            facts.append(f"loss {event['forget_loss']:.2f}, {event['retain_kl']:.3f} nats from the base")
        if self.console.is_terminal:
            if key not in self.tasks:
                self.tasks[key] = self.progress.add_task(f"{name}: {unit}", total=total, facts="")
            self.progress.update(self.tasks[key], completed=done, total=total, facts=", ".join(facts))
        elif time.monotonic() - self.last_plain.get(key, 0.0) > 5 or done == total:
            self.last_plain[key] = time.monotonic()
            if rate and done < total:
                facts.insert(1, f"{(total - done) / rate:.0f} s left")
            told = f" ({', '.join(facts)})" if facts else ""
            self.console.print(plain(f"  {name}: {done} of {total} {unit}{told}"))
        for sample in event.get("samples", [])[:SAMPLES_SHOWN]:
            if isinstance(sample, dict):
                verdict = f"rejected: {sample['reason']}" if sample.get("reason") else "accepted"
                self.console.print(
                    plain(f"    {sample['question']} -> {sample['answer']} [{verdict}]"), style="dim"
                )
            else:
                self.console.print(plain(f"    {sample}"), style="dim")


def evaluation_table(measured: Measured, width: int = 80) -> Table:
    """Base against adapter, with 95 % intervals where the evaluation has them.

    The interval of the change too, where a line has the ``width`` for it in characters.
    """
    table = Table(title=None, show_edge=False)
    table.add_column("")
    has_intervals = bool(measured.intervals)
    has_change = has_intervals and width >= WIDTH_FOR_CHANGE
    for name in ("base", "adapter", "change") if has_change else ("base", "adapter"):
        table.add_column(name, justify="right")
    table.add_column("found" if has_intervals else "wanted")
    for metric in shown_metrics(measured):
        values = [with_interval(measured, metric.key, whose) for whose in ("base", "adapter")]
        values += [change_written(measured, metric.key)] if has_change else []
        found = change_in_words(measured, metric.key, metric.less_is_better)
        table.add_row(metric.name, *map(plain, values), found if has_intervals else metric.wanted)
    if has_intervals:
        table.caption = "in brackets: 95 % intervals" + ("; change in points" if has_change else "")
    return table


def control_table(metrics: Metrics) -> Group | None:
    """What a random adapter of the same norm does; None where that was not measured."""
    rows = control_rows(metrics)
    if not rows:
        return None
    table = Table(title=None, show_edge=False)
    for heading in ("", "base", "adapter", "random"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in rows:
        table.add_row(name, *map(plain, values))
    return Group("", Text(control_title(metrics).capitalize()), table)


def three_answers(evaluation: Evaluation) -> Iterable[tuple[str, str, str]]:
    """Three questions on the topic, with what base and adapter answer: first those the base knew."""
    answered = [probe for probe in evaluation.probes if probe.base.answers and probe.adapter.answers]
    probes = [probe for probe in answered if probe.scope == "topic"]
    probes.sort(key=lambda probe: (probe.kind != "open", not probe.base.leaks[0]))
    for probe in probes[:3]:
        yield probe.question, probe.base.answers[0], probe.adapter.answers[0]


def show_result(evaluation: Evaluation, stream: TextIO | None = None) -> None:
    """The table and three questions answered by both."""
    console = Console(file=stream, highlight=False)
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
    console = Console(file=stream, highlight=False)
    for event in [event for event in events if isinstance(event, AcceptanceEvent)][-1:]:
        console.print()
        for sentence in acceptance_sentences(event):
            console.print(plain(sentence))


def show_audit(audit: Audit, stream: TextIO | None = None) -> None:
    """What was tried on the adapter, and how the model did after each."""
    table = Table(title=None, show_edge=False)
    for heading in ("tried", *AUDIT_COLUMNS.values()):
        table.add_column(heading, justify="left" if heading == "tried" else "right")
    for row in audit.rows:
        shares = [row.share(column) for column in AUDIT_COLUMNS]
        table.add_row(plain(row.name), *("" if share is None else f"{share:.0%}" for share in shares))
    console = Console(file=stream, highlight=False)
    console.print(table)
    console.print(AUDIT_NOTE, style="dim")
    console.print(plain(audit.text), style="bold")
