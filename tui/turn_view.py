"""A turn of the chat as it is drawn: a question over its replies."""

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from tui.text import shown, with_leak
from unlearn_mlx.inference.asking import Mode
from unlearn_mlx.session.conversation import Conversation, Turn, leak_in
from unlearn_mlx.text.printable import one_line


class TurnView(Vertical):
    """One question and its replies, beside each other where there are two.

    ``picked`` is the mode of the reply that is copied or marked next, where it is one of these.
    """

    class Picked(Message):
        """A reply was clicked."""

        def __init__(self, turn: Turn, mode: Mode) -> None:
            super().__init__()
            self.turn, self.mode = turn, mode

    def __init__(self, turn: Turn, conversation: Conversation) -> None:
        super().__init__(classes="turn")
        self.turn, self.conversation = turn, conversation
        self.picked: Mode | None = None
        self._is_built = False

    def compose(self) -> ComposeResult:
        """The question over its replies."""
        yield Static(shown(f"you: {self.turn.question}"), classes="asked")
        with Horizontal(classes="replies"):
            for mode in self.turn.replies:
                with Vertical(classes=f"reply {mode}"):
                    yield Static(classes=f"heading {mode}-heading")
                    yield Static(classes=f"said {mode}-said")

    def on_mount(self) -> None:
        """Show what is there."""
        self._is_built = True
        self.redraw()

    def on_click(self, event: Click) -> None:
        """Pick the reply that was clicked."""
        for node in event.widget.ancestors_with_self if event.widget else ():
            for mode in self.turn.replies:
                if node.has_class("reply") and node.has_class(mode):
                    self.post_message(self.Picked(self.turn, mode))

    def redraw(self) -> None:
        """Show the replies as they are now."""
        if not self._is_built:
            return
        topic, asked = self.conversation.topic, self.conversation.asked(self.turn)
        for mode, reply in self.turn.replies.items():
            heading = ("▸ " if mode == self.picked else "") + self.turn.heading(mode)
            text = reply.text.strip()
            if leak := leak_in(topic, asked, text):
                heading += f" · ⚠ leaks: {leak.reason}"
            if reply.is_marked:
                heading += " · ⚑ marked as a leak"
            self.query_one(f".{mode}-heading", Static).update(shown(one_line(heading)))
            if not reply.text and not self.turn.is_open:
                text = "(nothing)"
            self.query_one(f".{mode}-said", Static).update(with_leak(text, leak))
