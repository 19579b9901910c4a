"""The help that lies over a screen."""

from collections.abc import Iterable
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Markdown, Static

from tui.actions import Action
from tui.dialogs import Dialog


class Help(Dialog[None]):
    """What a screen is for, and every key on it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark", "dismiss", "Back", key_display="esc"),
    ]

    def __init__(self, told: str, actions: Iterable[Action]) -> None:
        """``told`` is Markdown."""
        super().__init__()
        self.told, self.actions = told, list(actions)

    def body(self) -> ComposeResult:
        """The text over the keys, the screen's own first."""
        own = [action for action in self.actions if action.is_own]
        general = [action for action in self.actions if not action.is_own]
        with Vertical(classes="dialog", id="help"), VerticalScroll():
            if self.told:
                yield Markdown(self.told)
            table = Table.grid(padding=(0, 2))
            table.add_column(justify="right", style="bold", no_wrap=True)
            for each in (*own, None, *general):
                told = Text.assemble((each.title, "bold"), f"  {each.told}") if each else ""
                table.add_row(each.keys if each else "", told)
            yield Static(table)
            yield Static("escape: back · the arrow keys scroll", classes="hint")
