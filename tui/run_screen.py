"""Run: the stages of the open run as they go, what they make, and the keys that hold them."""

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import Input, Static

from tui.dialogs import sentence
from tui.line_input import LineInput
from tui.lines import Lines
from tui.plots import Plots
from tui.section import Section
from tui.text import bar, duration, gigabytes, shown
from unlearn_mlx.errors import UserError
from unlearn_mlx.reporting.terminal import plain
from unlearn_mlx.runs.files import write_atomically
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.endings import cut_off_by
from unlearn_mlx.session.progress import STAGE_NAMES, LogLine, Progress, Sample, StageProgress

# A sign beside each state: colour is never alone.
SIGNS = {"waiting": "·", "running": "▸", "done": "✓", "cancelled": "◼", "failed": "✗", "cut off": "▲"}
VIEWS = ("samples", "plots", "log")
BAR_WIDTH = 16


class RunScreen(Section):
    """The open run at work."""

    HELP = (
        "# Run\nThe stages, and what they make. The worker is a process of its own: it may be **paused** "
        "(it keeps its memory), **stopped** at a safe point, and let **go on** where it stopped, also "
        "after the app was closed.\n\nIn a narrow terminal **v** shows samples, plots and log in turn."
    )
    section = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "start", "Go on"),
        Binding("p", "pause", "Pause"),
        Binding("x", "stop", "Stop"),
        Binding("v", "view", "View"),
        Binding("slash", "filter", "Filter log", key_display="/"),
        Binding("s", "save", "Save log"),
        Binding("escape", "unfilter", "All of the log", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._drawn: tuple[Progress | None, int] = (None, -1)  # the run and version that are shown
        self._samples_drawn = 0
        self._lines_drawn = 0

    def body(self) -> ComposeResult:
        """Stages, memory and message on top; three panels below."""
        with Vertical(id="progress"):
            yield Static(id="stages")
            yield Static(id="memory")
            yield Static(id="message")
        with Container(id="panels"):
            yield Lines("samples", "questions and answers")
            yield Plots(id="plots", classes="panel")
            with Vertical(id="log-panel", classes="panel"):
                yield LineInput(id="filter", placeholder="only lines with ...", compact=True)
                yield Lines("log", "log")

    def on_mount(self) -> None:
        """Begin with the samples."""
        self.query_one("#filter").display = False
        self._show_view("samples")
        super().on_mount()

    def opened(self) -> None:
        """Draw everything anew if another run is open."""
        if self._drawn[0] is not self.unlearn.progress:
            self._drawn = (None, -1)
            self._samples_drawn = self._lines_drawn = 0
            for name in ("#samples", "#log"):
                self.query_one(name, Lines).clear()
        self.query_one("#samples").focus()
        self.tick()

    def tick(self) -> None:
        """Draw what changed."""
        progress, entry = self.unlearn.progress, self.entry
        if progress is None or entry is None:
            told = "Open a run on Home, or make one there with n."
            if entry:
                told = "It comes with the project, done: 3 shows its rows, 5 is the chat, 6 its result."
            self.query_one("#stages", Static).update(told)
            self.query_one("#memory", Static).update("")
            self.query_one("#message", Static).update("")
            return
        is_working = self.unlearn.is_working(entry.path)
        self.query_one("#stages", Static).update(_stages(progress, is_working, _leaks(entry)))
        self.query_one("#memory", Static).update(self._memory(progress, is_working))
        self.query_one("#message", Static).update(self._message(progress, is_working))
        if self._drawn == (progress, progress.version):
            return
        self._drawn = (progress, progress.version)
        self._add_samples(progress)
        self._add_lines(progress)
        self.query_one(Plots).show(progress)
        # Before training there is nothing to plot, and the samples have the room.
        self.query_one("#panels").set_class(not progress.loss and not progress.leak, "untrained")

    def _memory(self, progress: Progress, is_working: bool) -> Content:
        """What the worker takes of the machine's memory, as a bar."""
        import psutil

        assert self.entry is not None
        total = progress.granted or psutil.virtual_memory().total
        # A GPU's arrays may be no part of what the system counts as a process's own.
        counted = progress.memory + progress.cache if is_working else 0
        taken = max(self.unlearn.pipelines.memory(self.entry.path), counted)
        if not is_working or not taken:
            return Content.assemble("  memory     ", bar(0, BAR_WIDTH), " no worker")
        kept = f", {gigabytes(progress.cache)} of it kept for reuse" if progress.cache else ""
        told = f" {gigabytes(taken)} of {gigabytes(total)}{kept}"
        return Content.assemble("  memory     ", bar(taken / total, BAR_WIDTH), told)

    def _message(self, progress: Progress, is_working: bool) -> Content:
        if self.entry and self.unlearn.pipelines.is_paused(self.entry.path):
            return Content("‖ paused: p goes on, x stops")
        if self.entry and self.unlearn.is_stopping(self.entry.path):
            return Content("◼ stopping at the next safe point: x ends it at once")
        if is_working:
            return Content("▸ at work: p pauses, x stops")
        state = self.entry.state(False) if self.entry else ""
        if self.unlearn.message:
            return shown(sentence((self.unlearn.message, "" if state == "done" else "r goes on")))
        if progress.running:
            cause = cut_off_by(progress.folder, progress.began)
            return shown(f"▲ cut off in {STAGE_NAMES[progress.running].lower()}: {cause} · r goes on")
        if progress.error:
            return shown(f"✗ {progress.error} · r goes on")
        return Content("✓ done: 6 shows the result, 5 is the chat" if state == "done" else "r goes on")

    def _add_samples(self, progress: Progress) -> None:
        """The samples that came since; text that others wrote."""
        log = self.query_one("#samples", Lines)
        new = min(progress.samples_seen - self._samples_drawn, len(progress.samples))
        for sample in list(progress.samples)[len(progress.samples) - new :]:
            log.add(plain(_sample_line(sample)))
        self._samples_drawn = progress.samples_seen

    def _add_lines(self, progress: Progress) -> None:
        new = min(progress.lines_seen - self._lines_drawn, len(progress.lines))
        self._write_lines(list(progress.lines)[len(progress.lines) - new :])
        self._lines_drawn = progress.lines_seen

    def _write_lines(self, lines: list[LogLine]) -> None:
        wanted = self.query_one("#filter", Input).value.casefold()
        log = self.query_one("#log", Lines)
        for line in lines:
            if wanted in str(line).casefold():
                text = plain(f"{'✗ ' if line.level == 'error' else ''}{line}")
                text.stylize("bold" if line.level != "info" else "")
                log.add(text)

    # Actions

    def action_start(self) -> None:
        """Let the run go on."""
        self.unlearn.start()

    def action_pause(self) -> None:
        """Let the worker stand still, or go on."""
        self.unlearn.pause()

    def action_stop(self) -> None:
        """Stop at the next safe point."""
        self.unlearn.stop()

    def action_view(self) -> None:
        """Show the next panel, where there is room for one."""
        current = next(name for name in VIEWS if self._panel(name).has_class("current"))
        self._show_view(VIEWS[(VIEWS.index(current) + 1) % len(VIEWS)])

    def _show_view(self, name: str) -> None:
        for view in VIEWS:
            self._panel(view).set_class(view == name, "current")

    def _panel(self, view: str) -> Container:
        return self.query_one("#log-panel" if view == "log" else f"#{view}")  # type: ignore[return-value]

    def action_filter(self) -> None:
        """Ask what the lines of the log must hold."""
        self._show_view("log")
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_unfilter(self) -> None:
        """Show every line of the log again."""
        field = self.query_one("#filter", Input)
        field.value = ""
        field.display = False
        self.query_one("#log").focus()

    def on_input_changed(self) -> None:
        """Write the log anew."""
        self.query_one("#log", Lines).clear()
        if self.unlearn.progress:
            self._write_lines(list(self.unlearn.progress.lines))

    def on_input_submitted(self) -> None:
        """Leave the field; the filter stays."""
        self.query_one("#log").focus()

    def action_save(self) -> None:
        """Write the log beside the run's files."""
        progress = self.unlearn.progress
        if progress is None:
            return
        path = progress.folder / f"log-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        try:
            write_atomically(path, "".join(f"{line}\n" for line in progress.lines))
            self.notify(f"The log is in {path}", markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)


def _leaks(entry: Entry) -> str:
    """What an evaluation has found, in words; empty where there is none."""
    if entry.before is None or entry.after is None:
        return ""
    return f"open questions that leak: {entry.before:.0%} → {entry.after:.0%}"


def _stages(progress: Progress, is_working: bool, leaks: str) -> Content:
    lines = []
    for name in STAGES:
        stage = progress.stages[name]
        state = "cut off" if stage.state == "running" and not is_working else stage.state
        head = f"{SIGNS.get(state, '?')} {STAGE_NAMES[name]:10s} "
        made = leaks if name == "evaluate" else progress.made(name)
        lines.append(Content.assemble(head, _stage_facts(stage, state, made)))
    return Content("\n").join(lines)


def _stage_facts(stage: StageProgress, state: str, made: str) -> Content:
    if state == "done" and made:
        return Content.assemble(bar(1.0, BAR_WIDTH), f" {made}")
    if not stage.total:
        return Content(state)
    share = 1.0 if state == "done" else stage.done / stage.total
    parts = [state if state != "running" else "", f"{stage.done}/{stage.total} {stage.unit}"]
    if state == "running":
        parts.append(stage.drafts)
        if stage.rate:
            parts.append(f"{stage.rate:.1f}/s")
        if stage.seconds_left is not None:
            parts.append(f"{duration(stage.seconds_left)} left")
    return Content.assemble(bar(share, BAR_WIDTH), f" {sentence(parts)}")


def _sample_line(sample: Sample) -> str:
    verdict = f"✗ {sample.reason}: " if sample.reason else "✓ " if sample.answer is not None else "? "
    return f"{verdict}{sample.question}" + ("" if sample.answer is None else f" → {sample.answer}")
