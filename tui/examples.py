"""Questions to begin a chat with."""

import asyncio

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from tui.text import shown
from unlearn_mlx.errors import UserError
from unlearn_mlx.session.catalog import Entry, example_questions
from unlearn_mlx.text.printable import one_line

EACH = 2  # of a scope


class Example(Static):
    """One of them; a click picks it."""

    class Picked(Message):
        """It is to be asked."""

        def __init__(self, question: str) -> None:
            super().__init__()
            self.question = question

    def __init__(self, question: str) -> None:
        super().__init__(shown(f"  {one_line(question)}"), classes="example")
        self.question = question

    def on_click(self, event: Click) -> None:
        """That one."""
        event.stop()
        self.post_message(self.Picked(self.question))


class Examples(Vertical):
    """What a conversation begins with: questions on the topic, its neighbours and everything else."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(id="examples")
        self.entry = entry
        self._place = -1

    def compose(self) -> ComposeResult:
        """The hint; the questions come when they are read."""
        told = "Ask something. ↓ takes one of these into the line, enter sends it, ctrl+t says who answers."
        yield Static(told, classes="hint")

    def on_mount(self) -> None:
        """Read the questions."""
        self._read()

    @work
    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(example_questions, self.entry, EACH)
        except UserError:
            return  # what is damaged is told where it is shown
        await self.mount_all(Example(question) for each in found.values() for question in each)

    def step(self, steps: int) -> str:
        """The next question, or the one before; empty where there is none."""
        every = list(self.query(Example))
        self._place = max(0, min(len(every) - 1, self._place + steps))
        return every[self._place].question if every else ""
