"""Home: what there is, what was cut off, and the way to a new run."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from tui.section import Section
from tui.table import Column, RowTable
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.text.printable import one_line

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
        self._states: list[str] = []  # as they are drawn

    def body(self) -> ComposeResult:
        """A line on what wants attention, and the table."""
        yield Static(id="attention")
        yield RowTable[Entry](
            [
                Column("topic", lambda entry: entry.topic_name, 18, share=0.2),
                Column("model", lambda entry: entry.short_model_name, 8, share=0.12),
                Column("state", self._state, 19),
                Column("leaks", _leaks, 10),
                Column("where", _where),
            ],
            id="entries",
        )

    def opened(self) -> None:
        """Show the entries anew, the cursor on the one it was on."""
        table = self._table()
        entries = list(self.unlearn.entries or [])
        here = table.current or self.entry
        table.loading = self.unlearn.entries is None
        places = [row for row, entry in enumerate(entries) if here and entry.path == here.path]
        table.show(entries, places[0] if places else table.cursor)
        table.focus()
        self.tick()

    def tick(self) -> None:
        """States change without a file changing: a worker starts, pauses, dies."""
        table = self._table()
        states = [self.unlearn.state_of(entry) for entry in table.rows]
        if states != self._states:
            self._states = states
            table.refresh()
        self._attend()

    def _attend(self) -> None:
        shown = self._table().rows
        cut = [entry for entry in shown if self.unlearn.state_of(entry).startswith("cut off")]
        damaged = [entry for entry in shown if entry.error]
        line = self.query_one("#attention", Static)
        if cut:
            line.update(Content(f"▲ {one_line(cut[0].name)} was cut off: r on its line goes on"))
        elif damaged:
            line.update(Content(f"▲ {one_line(damaged[0].error)}"))
        elif self.unlearn.entries is not None and not any(entry.run for entry in shown):
            line.update(WELCOME)
        else:
            line.update("enter: open · n: a new run")

    def _current(self) -> Entry | None:
        return self._table().current

    def _table(self) -> RowTable[Entry]:
        table: RowTable[Entry] = self.query_one("#entries", RowTable)
        return table

    def _state(self, entry: Entry) -> str:
        return self.unlearn.state_of(entry)

    def on_row_table_selected(self) -> None:
        """A second click opens the line."""
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
        if entry and entry.error:
            self.notify(entry.error, severity="error", markup=False)
        elif entry and entry.run:
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


def _leaks(entry: Entry) -> str:
    return "" if entry.before is None or entry.after is None else f"{entry.before:.0%} → {entry.after:.0%}"


def _where(entry: Entry) -> str:
    return str(entry.path) if entry.run or entry.error else "comes with the project"
