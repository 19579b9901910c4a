"""What the six screens share: the bar with their names on top, the footer with the keys below."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Protocol, cast

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Static

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import STAGES, Run
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.chat_engine import ChatEngine
from unlearn_mlx.session.processes import Workers
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.text.printable import one_line

SECTIONS = {
    "home": "Home",
    "run": "Run",
    "data": "Data",
    "topic": "Topic",
    "chat": "Chat",
    "result": "Result",
}
WIDE = 110  # columns from which everything is shown at once


class Host(Protocol):
    """What the screens know of the app: what there is, what is open, and who works on it."""

    entries: list[Entry] | None
    entry: Entry | None
    progress: Progress | None
    pipelines: Workers
    chat_engine: ChatEngine

    @property
    def message(self) -> str:
        """How the open run's worker ended."""

    def open(self, entry: Entry) -> None:
        """Open a run or a shipped adapter."""

    def state_of(self, entry: Entry) -> str:
        """How far an entry is, and whether anybody works on it."""

    def is_working(self, path: Path) -> bool:
        """Whether a process works on a run."""

    def is_stopping(self, path: Path) -> bool:
        """Whether a run's worker was asked to stop and still works."""

    def look_around(self) -> None:
        """Look for runs and workers."""

    def start(self, stages: Iterable[str] = STAGES) -> None:
        """Start a worker on the open run."""

    def stop(self) -> None:
        """Stop the open run's worker."""

    def pause(self) -> None:
        """Let the open run's worker stand still, or go on."""

    async def action_show(self, section: str) -> None:
        """Go to a screen."""


class Section(Screen[None]):
    """One of the six screens. ``section`` is its name in SECTIONS."""

    section: ClassVar[str]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 (as Textual declares it)

    @property
    def unlearn(self) -> Host:
        """The app, as what the screens know of it."""
        return cast(Host, self.app)

    @property
    def entry(self) -> Entry | None:
        """What is open."""
        return self.unlearn.entry

    def own_run(self) -> Run | None:
        """The open run, where it is one to change; what comes with the project says how to get a copy."""
        if self.entry is None:
            self.notify("Open a run first.")
            return None
        if self.entry.run is None:
            try:
                self.entry.as_run().check_own()
            except UserError as error:
                self.notify(self.entry.error or str(error), severity="warning", markup=False, timeout=15)
        return self.entry.run

    def compose(self) -> ComposeResult:
        """The bar, the screen's own widgets, and the keys."""
        with Horizontal(id="sections"):
            for number, (name, title) in enumerate(SECTIONS.items(), start=1):
                here = name == self.section
                yield SectionName(name, f"{'▸' if here else ' '}{number} {title} ", here)
            yield Static(id="opened")
        yield from self.body()
        yield Footer(compact=True, show_command_palette=False)

    def body(self) -> ComposeResult:
        """The screen's own widgets."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.is_built = False  # its widgets are there; the app's timer does not wait for them

    def on_mount(self) -> None:
        """Show what is open."""
        self.is_built = True
        self.show_entry()

    def on_screen_resume(self) -> None:
        """Show what may have changed while another screen was there."""
        self.show_entry()

    def show_entry(self) -> None:
        """Show what is open now, in the bar and in the screen."""
        if self.is_built:
            self.show_opened()
            self.opened()

    def show_opened(self) -> None:
        """The name and state of what is open, at the right of the bar."""
        entry = self.entry
        if entry is None:
            text = "nothing is open"
        else:
            text = f"{self.unlearn.state_of(entry)} · {one_line(entry.name)}"
        self.query_one("#opened", Static).update(Content(text))

    def opened(self) -> None:
        """Called when another run was opened, and each time that this screen comes up."""

    def tick(self) -> None:
        """Called four times a second while this screen is up."""


class SectionName(Static):
    """A screen's name in the bar; a click goes there."""

    def __init__(self, name: str, title: str, here: bool) -> None:
        super().__init__(Content(title), classes="here" if here else "")
        self.target = name

    async def on_click(self) -> None:
        """Go there."""
        await self.app.run_action(f"app.show('{self.target}')")
