"""Result: before and after, where it still leaks, and what leaves the house."""

import asyncio
import shutil
from pathlib import Path
from typing import ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tui.dialogs import Line
from tui.section import Section
from tui.text import shown
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.evaluation.records import Evaluation, Metrics, ScoredProbe
from unlearn_mlx.evaluation.schema import SCOPES
from unlearn_mlx.mending.marks import standing_marks
from unlearn_mlx.reporting.terminal import control_table, evaluation_table, plain, three_answers
from unlearn_mlx.reporting.transcripts import Cell, HeatMap, heat_map
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import slug_of

SHADES = " ░▒▓█"  # of a cell: colour is not needed to see how bad it is
ENTITY_WIDTH, CELL_WIDTH = 24, 12  # cells of the screen, in the map
BETWEEN = 3  # cells between two columns of the map


class ResultScreen(Section):
    """The open run's evaluation."""

    HELP = (
        "# Result\nBase against adapter on questions that training never saw. In the map a cell says how "
        "many probes showed the knowledge, base → adapter of all; the darker, the worse: on the topic "
        "what still shows, elsewhere what was lost."
    )
    section = "result"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "report", "Open report"),
        Binding("e", "export", "Export adapter"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._probes: list[ScoredProbe] = []

    def body(self) -> ComposeResult:
        """Everything below each other."""
        with VerticalScroll(id="result"):
            yield Static(id="table")
            yield Static(id="maps")
            yield Static(id="said")

    def opened(self) -> None:
        """Read the evaluation."""
        self.query_one("#result").focus()
        self._read()

    @work(exclusive=True, group="read")
    async def _read(self) -> None:
        entry = self.entry
        metrics: Metrics | None = None
        told = "Open a run on Home."
        if entry is not None:
            try:
                metrics = await asyncio.to_thread(entry.evaluation)
                told = "It is not evaluated yet: let it go on on Run."
            except UserError as error:
                told = str(error)
        table, said = (self.query_one(f"#{name}", Static) for name in ("table", "said"))
        self._probes = []
        said.update("")
        self._draw_maps()
        if metrics is None or entry is None:
            table.update(shown(told))
            return
        tables = (evaluation_table(metrics), control_table(metrics))
        table.update(Group(*(each for each in tables if each)))
        if isinstance(metrics, Evaluation):
            self._probes = metrics.probes
            self._draw_maps()
            said.update(Content.assemble(_said(metrics), _marked(entry.path)))
        else:
            said.update(self._hint(entry))

    def on_resize(self) -> None:
        """The maps take the room that there is."""
        if self.is_built:
            self.call_after_refresh(self._draw_maps)

    def _draw_maps(self) -> None:
        width = self.query_one("#result").scrollable_content_region.width
        self.query_one("#maps", Static).update(_maps(self._probes, width))

    def _hint(self, entry: Entry) -> Content:
        return shown(f"\n5: chat with it. What each probe was answered is kept in runs, not in {entry.path}")

    # Actions

    def action_report(self) -> None:
        """Open report.html in the browser, written first where that was not done."""
        if self.entry is None or self.entry.after is None:
            self.notify("A report belongs to a run that is evaluated.")
            return
        self.notify("Opening the report ...")
        self.run_worker(self._report(self.entry), exclusive=True, group="report")

    async def _report(self, entry: Entry) -> None:
        try:
            path = await asyncio.to_thread(_report_of, entry)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.app.open_url(path.resolve().as_uri())
        self.notify(f"The report is {path}", markup=False)

    def action_export(self) -> None:
        """Copy the adapter to a folder."""
        if self.entry is None or self.entry.adapter is None:
            self.notify("There is no adapter yet.")
            return
        usual = f"exports/{slug_of(self.entry.topic_name)}-{slug_of(self.entry.model_name)}"
        self.app.push_screen(Line("Copy the adapter to which folder?", usual), self._export)

    def _export(self, folder: str | None) -> None:
        if folder and self.entry and self.entry.adapter:
            self.run_worker(self._copy(self.entry.adapter, Path(folder).expanduser()))

    async def _copy(self, adapter: Path, folder: Path) -> None:
        try:
            await asyncio.to_thread(copy_adapter, adapter, folder)
            self.notify(f"In {folder}: mlx_lm.generate --adapter-path takes it.", markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)


def copy_adapter(adapter: Path, folder: Path) -> None:
    """Copy an adapter's two files to a folder that is empty or not there.

    Raises:
        UserError: where the folder holds something, or cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("adapters.safetensors", "adapter_config.json"):
            shutil.copyfile(adapter / name, folder / name)
    except OSError as error:
        raise EnvironmentCannot(
            f"cannot write {folder}: {error.strerror or error}; name another folder"
        ) from error


def _report_of(entry: Entry) -> Path:
    run = entry.as_run()
    path = run.file("report.html")
    if path.exists() and path.stat().st_mtime >= run.file("evaluation.json").stat().st_mtime:
        return path
    from unlearn_mlx.reporting.report import write_report

    return write_report(run)


def _maps(probes: list[ScoredProbe], width: int) -> Table:
    """A map for each scope; forms that have no room beside the others come below them."""
    at_once = max(1, (width - ENTITY_WIDTH - BETWEEN) // (CELL_WIDTH + BETWEEN))
    grid = Table.grid(padding=(0, 0))
    for scope, name in SCOPES.items():
        found = heat_map(probes, scope)
        if found.rows:
            grid.add_row(Text(f"\n{name}: probes that show the knowledge, base→adapter/all", "bold"))
            for first in range(0, len(found.forms), at_once):
                grid.add_row(_map(found, slice(first, first + at_once)))
    return grid


def _map(found: HeatMap, part: slice) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", width=ENTITY_WIDTH, no_wrap=True)
    for form in found.forms[part]:
        name = plain(form.replace("_", " ").replace("-", " "))
        table.add_column(name, width=CELL_WIDTH, justify="center")
    for entity, cells in found.rows:
        if any(cells[part]):
            table.add_row(plain(one_line(entity)), *map(_cell, cells[part]))
    return table


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    shade = SHADES[round(cell.worse * (len(SHADES) - 1))]
    return Text(f"{shade}{shade} {cell.base}→{cell.adapter}/{cell.count}", "bold" if cell.worse else "")


def _said(evaluation: Evaluation) -> Content:
    parts = []
    for question, base, adapter in three_answers(evaluation):
        parts += [
            shown(f"\n{one_line(question)}\n", "bold"),
            shown(f"  base:    {one_line(base)}\n  adapter: {one_line(adapter)}\n"),
        ]
    return Content.assemble(*parts)


def _marked(run_folder: Path) -> Content:
    """How many replies of the chat the user has marked as leaks."""
    count = len(standing_marks(run_folder))
    return Content(f"\n{count} replies of the chat marked as leaks (marks.jsonl)" if count else "")
