"""Home: what there is, what was cut off, and the way to a new run."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable, Static

from tui.entries import Entry
from tui.section import Section
from tui.text import one_line
from unlearn_mlx.cli_view import plain

WELCOME = "Nothing here yet. n: a new run · enter on a shipped adapter: chat with it"


class HomeScreen(Section):
    """The runs of this directory and the adapters that come with the project."""

    HELP = (
        "# Home\nEach line is a run, or an adapter that comes with the project. *Leaks* is the share of "
        "open questions on the topic that the model still answers, before and after.\n\n"
        "A run that was cut off goes on with **r**, where it stopped."
    )
    section = "home"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new_run", "New run"),
        Binding("enter", "open", "Open"),
        Binding("r", "resume", "Go on"),
        Binding("c", "chat", "Chat"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[Entry] = []

    def body(self) -> ComposeResult:
        """A line on what wants attention, and the table."""
        yield Static(id="attention")
        yield DataTable(id="entries", cursor_type="row", zebra_stripes=True)

    def on_mount(self) -> None:
        """Set the table up."""
        table = self.query_one(DataTable)
        for heading, width in (("topic", 22), ("model", 10), ("state", 11), ("leaks", 11)):
            table.add_column(heading, width=width, key=heading)
        table.add_column("where", key="where")
        super().on_mount()

    def opened(self) -> None:
        """Draw the table anew, the cursor on the run it was on."""
        table = self.query_one(DataTable)
        entries = self.unlearn.entries
        here = self._current()
        path = here.path if here else self.entry.path if self.entry else None
        table.loading = entries is None
        table.clear()
        self._shown = list(entries or [])
        for entry in self._shown:
            table.add_row(*map(plain, _cells(entry, self.unlearn.state_of(entry))))
        for row, entry in enumerate(self._shown):
            if entry.path == path:
                table.move_cursor(row=row)
        table.focus()
        self._attend()

    def tick(self) -> None:
        """States change without a file changing: a worker starts, pauses, dies."""
        table = self.query_one(DataTable)
        for row, entry in enumerate(self._shown):
            state = plain(self.unlearn.state_of(entry))
            if table.get_cell_at((row, 2)) != state:  # type: ignore[arg-type]
                table.update_cell_at((row, 2), state)  # type: ignore[arg-type]
                self._attend()

    def _attend(self) -> None:
        cut = [entry for entry in self._shown if self.unlearn.state_of(entry).startswith("cut off")]
        damaged = [entry for entry in self._shown if entry.error]
        line = self.query_one("#attention", Static)
        if cut:
            line.update(Content(f"▲ {one_line(cut[0].name)} was cut off: r on its line goes on"))
        elif damaged:
            line.update(Content(f"▲ {one_line(damaged[0].error)}"))
        elif self.unlearn.entries is not None and not any(entry.run for entry in self._shown):
            line.update(WELCOME)
        else:
            line.update("enter: open · n: a new run")

    def _current(self) -> Entry | None:
        row = self.query_one(DataTable).cursor_row
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def on_data_table_row_selected(self) -> None:
        """Enter or a second click opens the line."""
        self.action_open()

    def action_open(self) -> None:
        """Open the line: a result where there is one, else the run."""
        entry = self._current()
        if entry is None:
            return
        if entry.error:
            self.notify(entry.error, severity="error", markup=False)
            return
        self.unlearn.open(entry)
        section = "chat" if entry.run is None else "result" if entry.after is not None else "run"
        self.run_worker(self.unlearn.action_show(section))

    def action_resume(self) -> None:
        """Let the line's run go on."""
        entry = self._current()
        if entry and entry.run:
            self.unlearn.open(entry)
            self.unlearn.start()
            self.run_worker(self.unlearn.action_show("run"))
        else:
            self.notify("A shipped adapter is finished: chat with it.")

    def action_chat(self) -> None:
        """Chat with the line's model."""
        entry = self._current()
        if entry and not entry.error:
            self.unlearn.open(entry)
            self.run_worker(self.unlearn.action_show("chat"))

    def action_new_run(self) -> None:
        """Ask what to forget."""
        from tui.new_run import NewRun

        self.app.push_screen(NewRun(), self._made)

    def _made(self, entry: Entry | None) -> None:
        if entry is not None:
            self.unlearn.open(entry)
            self.unlearn.start()
            self.unlearn.look_around()
            self.run_worker(self.unlearn.action_show("run"))


def _cells(entry: Entry, state: str) -> tuple[str, ...]:
    leaks = "" if entry.before is None or entry.after is None else f"{entry.before:.0%} → {entry.after:.0%}"
    where = str(entry.path) if entry.run or entry.error else "comes with the project"
    return tuple(map(one_line, (entry.topic_name, entry.model_name, state, leaks, where)))
