"""What the six screens share: the bar with their names on top, the footer with the keys below."""

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Static

from tui.entries import Entry
from unlearn_mlx.text.printable import one_line

if TYPE_CHECKING:
    from tui.app import UnlearnApp

SECTIONS = {
    "home": "Home",
    "run": "Run",
    "data": "Data",
    "topic": "Topic",
    "chat": "Chat",
    "result": "Result",
}
WIDE = 110  # columns from which everything is shown at once


class Section(Screen[None]):
    """One of the six screens. ``section`` is its name in SECTIONS."""

    section: ClassVar[str]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 (as Textual declares it)

    @property
    def unlearn(self) -> "UnlearnApp":
        """The app, by its own type."""
        from tui.app import UnlearnApp

        assert isinstance(self.app, UnlearnApp)
        return self.app

    @property
    def entry(self) -> Entry | None:
        """What is open."""
        return self.unlearn.entry

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
