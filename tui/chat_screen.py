"""Chat: base, adapter or both, toggled in the middle of a conversation."""

import asyncio
import gc
import time
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from tui.conversation import MODES, Conversation, Reply, Turn, mark_row
from tui.section import Section
from tui.slider import Slider
from tui.text import leaked_names, one_line, shown, with_leaks
from unlearn_mlx.errors import UserError
from unlearn_mlx.files import append_rows, write_atomically
from unlearn_mlx.language_model.engine import Answering, Mode
from unlearn_mlx.topics import Topic, slug_of

REDRAW = 1 / 15  # seconds between two drawings of an answer under way


class TurnView(Vertical):
    """One question and its replies, beside each other where there are two."""

    def __init__(self, turn: Turn, topic: Topic | None) -> None:
        super().__init__(classes="turn")
        self.turn, self.topic = turn, topic
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

    def redraw(self) -> None:
        """Show the replies as they are now."""
        if not self._is_built:
            return
        for mode, reply in self.turn.replies.items():
            heading = self.turn.heading(mode)
            names = leaked_names(self.topic, self.turn.question, reply.text) if self.topic else []
            if names:
                heading += f" · ⚠ leaks {', '.join(names)}"
            if reply.is_marked:
                heading += " · ⚑ marked as a leak"
            self.query_one(f".{mode}-heading", Static).update(shown(one_line(heading)))
            text = reply.text if reply.text or reply.state == "asked" else "(nothing)"
            self.query_one(f".{mode}-said", Static).update(
                with_leaks(self.topic, self.turn.question, text.strip())
            )


class ChatScreen(Section):
    """Talks to the open run's model, or to a shipped adapter's."""

    HELP = (
        "# Chat\n**ctrl+t** changes who answers: the adapter, the base, or both side by side. Each has "
        "its own memory of the conversation. Names of the topic that the question did not say are set "
        "off and counted as leaks.\n\nStrength 1 is the adapter as trained, 0 is the base. **Tab** goes "
        "from the line to the sliders, the arrow keys change them. **Escape** leaves the line, so that 1 "
        "to 6 change the screen; f1 to f6 do so from anywhere, and f12 is this help."
    )
    section = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+t", "toggle_mode", "Toggle", priority=True),
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+y", "copy", "Copy", priority=True),
        Binding("ctrl+s", "export", "Export", priority=True),
        Binding("ctrl+l", "mark", "Leak", priority=True),
        Binding("ctrl+n", "anew", "New", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.mode = "adapter"
        self.conversation = Conversation()
        self._path: Path | None = None  # of what is talked to
        self._topic: Topic | None = None
        self._answering: Answering | None = None
        self._is_ready = False
        self._since = 0.0

    def body(self) -> ComposeResult:
        """The conversation, how it is led, and the line to write in."""
        yield VerticalScroll(id="conversation", can_focus=False)
        with Horizontal(id="settings"):
            yield Slider("strength", 0, 2, 0.1, 1, id="strength")
            yield Slider("temperature", 0, 1.5, 0.1, 0, id="temperature")
            yield Slider("length", 16, 512, 16, 128, id="length")
        yield Static(id="chat-state")
        yield Input(id="question", placeholder="ask something, enter sends", compact=True)

    def on_mount(self) -> None:
        """Draw answers by a timer, so that keys are never behind tokens."""
        self.query_one("#conversation", VerticalScroll).anchor()
        self.set_interval(REDRAW, self._draw)
        super().on_mount()

    def opened(self) -> None:
        """Begin anew where another model is open, and load it."""
        entry = self.entry
        if entry is not None and entry.path != self._path:
            self._path = entry.path
            self.mode = "adapter"
            try:
                self._topic = entry.topic
            except UserError as error:
                self._topic = None
                self.notify(str(error), severity="error", markup=False)
            self._clear()
        if entry is not None:
            self.mode = self.mode if entry.adapter else "base"
            self._is_ready, self._since = False, time.monotonic()
            self.run_worker(asyncio.to_thread(self.unlearn.talking.prepare, entry.model_name))
        self.query_one("#question").focus()
        self._show_state()

    def tick(self) -> None:
        """See whether the model is loaded."""
        if self._is_ready or self.entry is None:
            return
        try:
            self._is_ready = self.unlearn.talking.is_ready()
            if self._is_ready:
                gc.freeze()  # as the app does when it begins: mlx-lm has brought much
            self._show_state()
        except UserError as error:
            self._is_ready = True  # nothing more to wait for
            self._show_state(f"✗ {error}")
            self.notify(str(error), severity="error", markup=False)

    def _show_state(self, told: str = "") -> None:
        if self.entry is None:
            told = "Open a run or a shipped adapter on Home."
        elif not told:
            loading = "" if self._is_ready else f" · loading ... {time.monotonic() - self._since:.0f} s"
            none = "" if self.entry.adapter else " · no adapter yet: only the base answers"
            told = f"▸ {self.mode} answers{loading}{none}"
        self.query_one("#chat-state", Static).update(shown(one_line(told)))

    # Asking and answering

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ask."""
        question = one_line(event.value)
        if self.entry is None or not question:
            return
        if self._answering is not None:
            self.notify("An answer is under way: escape stops it.")
            return
        modes = MODES[self.mode]
        strength, temperature = self._value("strength"), self._value("temperature")
        contexts = self.conversation.contexts(question, modes)
        turn = Turn(question, {mode: Reply() for mode in modes}, strength, temperature)
        try:
            self._answering = self.unlearn.talking.ask(
                contexts,
                self.entry.adapter,
                temperature,
                int(self._value("length")),
                strength,
                seed=len(self.conversation.turns),
            )
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        event.input.value = ""
        self.show_turn(turn)

    def show_turn(self, turn: Turn) -> None:
        """Add a turn to the conversation, and keep its end in sight."""
        self.conversation.turns.append(turn)
        self.query_one("#conversation").mount(TurnView(turn, self._topic))
        self.query_one("#conversation", VerticalScroll).anchor()

    def _value(self, slider: str) -> float:
        return self.query_one(f"#{slider}", Slider).value

    def _draw(self) -> None:
        """Show what has come of the answer under way."""
        answering = self._answering
        if answering is None:
            return
        turn = self.conversation.turns[-1]
        try:
            pieces = answering.read(timeout=0)
        except Exception as error:  # mlx and tokenizers raise many kinds; the app goes on
            pieces = []
            turn.end("failed")
            self.notify(one_line(str(error)), severity="error", markup=False)
        for piece in pieces:
            turn.replies[piece.mode].take(piece)
        if answering.ended:
            turn.end("stopped" if answering.stop.is_set() else "cut at its length")
            self._answering = None
        if pieces or answering.ended:
            self._last_view().redraw()

    def _last_view(self) -> TurnView:
        return self.query(TurnView).last()

    def _last_reply(self) -> tuple[Turn, Mode] | None:
        """The last turn and the mode whose reply is meant: the adapter's where both answered."""
        if not self.conversation.turns:
            self.notify("Nothing was said yet.")
            return None
        turn = self.conversation.turns[-1]
        return turn, "adapter" if "adapter" in turn.replies else "base"

    # Actions

    def action_toggle_mode(self) -> None:
        """The next one answers from now on."""
        if self.entry is not None and self.entry.adapter is None:
            self.notify("There is no adapter yet: only the base can answer.")
            return
        names = list(MODES)
        self.mode = names[(names.index(self.mode) + 1) % len(names)]
        self._show_state()

    def action_stop(self) -> None:
        """Stop the answer; without one, leave the line, so that the number keys change the screen."""
        if self._answering is not None:
            self._answering.cancel()
        else:
            self.set_focus(None)

    def action_copy(self) -> None:
        """Put the last reply on the clipboard."""
        if found := self._last_reply():
            turn, mode = found
            self.app.copy_to_clipboard(turn.replies[mode].text.strip())
            self.notify("Copied.")

    def action_export(self) -> None:
        """Write the conversation as Markdown, into the run's directory or the current one."""
        if self.entry is None or not self.conversation.turns:
            self.notify("Nothing was said yet.")
            return
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = self.entry.path / "chats" if self.entry.run else Path.cwd()
        path = folder / f"chat-{slug_of(self.entry.topic_name)}-{stamp}.md"
        try:
            write_atomically(path, self.conversation.markdown(self.entry.name, self._topic))
            self.notify(f"The conversation is in {path}", markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)

    def action_mark(self) -> None:
        """Mark the last reply as a leak, or take the mark back; kept in the run."""
        found = self._last_reply()
        if found is None or self.entry is None:
            return
        turn, mode = found
        turn.replies[mode].is_marked = not turn.replies[mode].is_marked
        self._last_view().redraw()
        if self.entry.run:
            try:
                append_rows(self.entry.path / "marked.jsonl", [mark_row(turn, mode)])
            except UserError as error:
                self.notify(str(error), severity="error", markup=False)

    def action_anew(self) -> None:
        """Begin another conversation."""
        self._clear()
        self._show_state()

    def _clear(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None
        self.conversation = Conversation()
        self.query_one("#conversation").remove_children()
