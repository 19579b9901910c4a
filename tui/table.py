"""A table of many rows: only those on the screen are drawn, so ten thousand cost no more than ten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from unlearn_mlx.text.printable import one_line

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A heading, the text of a row's cell, and a width in cells (0: a part of what is left).

    ``share`` is the part of a wide table that the column grows to.
    """

    heading: str
    text: Callable[[Row], str]
    width: int = 0
    share: float = 0.0


class RowTable(ScrollView, Generic[Row], can_focus=True, inherit_bindings=False):
    """Rows under a heading, with a cursor. Every text is shown as it stands, in one line."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"row-table--heading", "row-table--cursor", "row-table--odd"}
    DEFAULT_CSS = """
    RowTable { height: 1fr; overflow-x: hidden; overflow-y: scroll; }
    RowTable > .row-table--heading { background: $panel; color: $foreground; text-style: bold; }
    RowTable > .row-table--cursor { background: $block-cursor-background; color: $block-cursor-foreground;
        text-style: bold; }
    RowTable > .row-table--odd { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "end(0)", "First", show=False),
        Binding("end,G", "end(1)", "Last", show=False),
    ]
    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor stands on another row, or other rows are shown."""

    class Selected(Message):
        """A row was clicked that the cursor stood on."""

    def __init__(self, columns: Sequence[Column[Row]], id: str) -> None:
        super().__init__(id=id)
        self.columns = list(columns)
        self.rows: Sequence[Row] = []

    def show(self, rows: Sequence[Row], cursor: int = 0) -> None:
        """Show other rows."""
        self.rows = rows
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self.set_reactive(RowTable.cursor, max(0, min(cursor, len(rows) - 1)))
        self._follow()
        self.refresh()
        self.post_message(self.Moved())

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if self.rows else None

    def validate_cursor(self, cursor: int) -> int:
        """Keep it on the rows."""
        return max(0, min(cursor, len(self.rows) - 1))

    def watch_cursor(self) -> None:
        """Bring the row into sight, and tell who listens."""
        self._follow()
        self.refresh()
        self.post_message(self.Moved())

    def on_resize(self, event: Resize) -> None:
        """Columns are as wide as there is room."""
        self.virtual_size = Size(event.size.width, len(self.rows) + 1)
        self.refresh()

    def _follow(self) -> None:
        # The heading stays on the first line, so that the cursor's row needs one line above it.
        self.scroll_to_region(Region(0, self.cursor, 1, 2), animate=False, force=True)

    def _widths(self) -> list[int]:
        room = self.scrollable_content_region.width
        own = [max(column.width, int(column.share * room)) for column in self.columns]
        left = room - sum(own) - len(own)
        return [width or max(4, left // own.count(0)) for width in own]

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the heading, a row, or nothing."""
        width = self.size.width
        if y == 0:
            texts = [column.heading for column in self.columns]
            style = self.get_component_rich_style("row-table--heading")
        else:
            number = y - 1 + self.scroll_offset.y
            if number >= len(self.rows):
                return Strip.blank(width, self.rich_style)
            texts = [one_line(column.text(self.rows[number])) for column in self.columns]
            style = self._style(number)
        cells = [
            set_cell_size(_cut(text, size), size) + " "
            for text, size in zip(texts, self._widths(), strict=True)
        ]
        return Strip([Segment("".join(cells), style)]).adjust_cell_length(width, style)

    def _style(self, number: int) -> Style:
        if number == self.cursor:
            return self.get_component_rich_style("row-table--cursor")
        return self.get_component_rich_style("row-table--odd") if number % 2 else self.rich_style

    def on_click(self, event: Click) -> None:
        """Put the cursor there; a click on the row it stands on selects it."""
        number = event.y - 1 + self.scroll_offset.y
        if event.y and 0 <= number < len(self.rows):
            if number == self.cursor:
                self.post_message(self.Selected())
            self.cursor = number

    def action_move(self, rows: int) -> None:
        """Up or down."""
        self.cursor += rows

    def action_page(self, pages: int) -> None:
        """Up or down by what is on the screen."""
        self.cursor += pages * max(1, self.size.height - 2)

    def action_end(self, last: int) -> None:
        """To the first row or to the last."""
        self.cursor = last * (len(self.rows) - 1)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
