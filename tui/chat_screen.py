"""Chat: base, adapter or both, toggled in the middle of a conversation."""

import asyncio
import gc
import shutil
import time
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Static

from tui.examples import Example, Examples
from tui.line_input import LineInput
from tui.section import Section
from tui.slider import Slider
from tui.text import shown
from tui.turn_view import TurnView
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.asking import Answering, Mode
from unlearn_mlx.mending.undo import undo_mend
from unlearn_mlx.runs.files import write_atomically
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.catalog import run_entry
from unlearn_mlx.session.conversation import MEMORY, MODES, Conversation, Manner, Turn
from unlearn_mlx.session.marking import toggle_mark
from unlearn_mlx.session.mending import mend_sentence, stages_of_mend
from unlearn_mlx.session.shipped import run_to_mend
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import slug_of

REDRAW = 1 / 15  # seconds between two drawings of an answer under way
KEYS_SHARE = 12  # times as long as a drawing took, nothing is drawn again
LONGEST_DRAWING = 1.0  # seconds; a screen that is not in sight does not say when it has been drawn
USUAL_STRENGTH = 1.0


class ChatScreen(Section):
    """Talks to the open run's model, or to a shipped adapter's."""

    HELP = (
        "# Chat\n**ctrl+t** changes who answers: the adapter, the base, or both side by side. "
        f"{MEMORY} Names of the topic that you did not say are set off, and said above the answer as its "
        "leaks. **Copy** and **Leak** take the last reply, or the one that the arrow keys or the mouse have "
        "chosen. **f8** (Mend) trains away what the adapter said and you marked: the line below and the Run "
        "screen's log show how far it is. **f9** brings the old adapter back.\n\n"
        "Strength 1 is the adapter as trained, 0 is the base. **ctrl+g** "
        "goes from the line to the sliders and from one to the next, the arrow keys change them. "
        "**Escape** leaves the line, so that 1 to 6 change the screen; f1 to f6 do so from anywhere."
    )
    section = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+t", "toggle_mode", "Mode", priority=True),
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+y", "copy", "Copy", priority=True),
        Binding("ctrl+s", "export", "Save", priority=True),
        Binding("ctrl+l", "mark", "Leak", priority=True),
        Binding("ctrl+g", "set", "Set", priority=True),
        Binding("up", "pick(-1)", "Earlier reply", show=False, priority=True),
        Binding("down", "pick(1)", "Later reply", show=False, priority=True),
        Binding("pageup", "page(-1)", "Back", show=False, priority=True),
        Binding("pagedown", "page(1)", "On", show=False, priority=True),
        Binding("ctrl+n", "anew", "New", priority=True),
        Binding("f8", "mend", "Mend", show=False, priority=True),
        Binding("f9", "undo_mend", "Undo the mend", show=False, priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.mode = "adapter"
        self._conversations: dict[Path | None, Conversation] = {None: Conversation()}
        self._strengths: dict[Path | None, float] = {}  # each conversation's, while another is open
        self._path: Path | None = None  # of what is talked to
        self._picked: tuple[Turn, Mode] | None = None  # the reply that is copied or marked next
        self._answering: Answering | None = None
        self._mending: Path | None = None  # the run that is mended
        self._is_ready = self._is_stale = False  # the model; what is drawn of the answer
        self._since = self._draw_from = 0.0

    @property
    def conversation(self) -> Conversation:
        """The one with what is open; each is kept as long as the app is."""
        return self._conversations.setdefault(self._path, Conversation())

    def body(self) -> ComposeResult:
        """The conversation, how it is led, and the line to write in."""
        yield VerticalScroll(id="conversation", can_focus=False)
        with Horizontal(id="settings"):
            yield Slider("strength", 0, 2, 0.1, USUAL_STRENGTH, id="strength")
            yield Slider("temperature", 0, 1.5, 0.1, 0, id="temperature")
            yield Slider("length", 16, 512, 16, 128, id="length")
        yield Static(id="chat-state")
        yield LineInput(
            id="question", placeholder="ask something: enter sends, escape leaves the line", compact=True
        )

    def on_mount(self) -> None:
        """Draw answers by a timer, so that keys are never behind tokens."""
        self.query_one("#conversation", VerticalScroll).anchor()
        self.set_interval(REDRAW, self._draw)
        super().on_mount()

    def opened(self) -> None:
        """Show the conversation with what is open, and load its model."""
        entry = self.entry
        if entry is not None and entry.path != self._path:
            strength = self.query_one("#strength", Slider)
            self._strengths[self._path] = strength.value
            strength.value = self._strengths.get(entry.path, USUAL_STRENGTH)
            self._path = entry.path
            self.mode = "adapter"
            try:
                self.conversation.topic = entry.topic
            except UserError as error:
                self.notify(str(error), severity="error", markup=False)
            self._show_conversation()
        if entry is not None:
            self.mode = self.mode if entry.adapter else "base"
            self._is_ready, self._since = False, time.monotonic()
            self.run_worker(asyncio.to_thread(self.unlearn.chat_engine.prepare, entry.model_name))
        self.query_one("#question").focus()
        self._show_state()

    def tick(self) -> None:
        """See whether the model is loaded, and whether a mend has ended."""
        self._see_mend()
        if self._is_ready or self.entry is None:
            return
        try:
            self._is_ready = self.unlearn.chat_engine.is_ready()
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
            who = "both answer" if self.mode == "both" else f"{self.mode} answers"
            told = f"▸ {who}{loading}{none}{self._mending_state()}"
        self.query_one("#chat-state", Static).update(shown(one_line(told)))

    def _mending_state(self) -> str:
        """How far a mend is that was begun here; empty where none is at work."""
        progress = self.unlearn.progress
        if self._mending is None or progress is None:
            return ""
        mend = progress.stages["mend"]
        part = "evaluating" if mend.state == "done" else f"{mend.done} of {mend.total} {mend.unit}"
        return f" · mending: {part}"

    # Asking and answering

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ask."""
        question = one_line(event.value)
        if self.entry is None or not question:
            return
        if self._answering is not None:
            self.notify("An answer is under way: escape stops it.")
            return
        manner = Manner(
            MODES[self.mode],
            self._value("strength"),
            self._value("temperature"),
            int(self._value("length")),
            seed=len(self.conversation.turns),
        )
        turn = Turn(question, manner)
        try:
            engine = self.unlearn.chat_engine.engine
            self._answering = self.conversation.ask(engine, turn, self.entry.adapter)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        event.input.value = ""
        self.show_turn(turn)

    def show_turn(self, turn: Turn) -> None:
        """Draw a turn that was added to the conversation, and keep its end in sight."""
        self._pick(None)
        self.query(Examples).remove()
        self.query_one("#conversation").mount(TurnView(turn, self.conversation))
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
            turn.state = one_line(str(error)) or "failed"
            self.notify(one_line(str(error)), severity="error", markup=False)
        for piece in pieces:
            turn.take(piece)
        if answering.ended:
            if turn.is_open:
                turn.state = "stopped" if answering.stop.is_set() else "answered"
            self._answering = None
        self._is_stale |= bool(pieces or answering.ended or turn.reading())
        if self._is_stale and (answering.ended or time.monotonic() >= self._draw_from):
            began, self._is_stale = time.monotonic(), False
            self.query(TurnView).last().redraw()
            self._draw_from = began + LONGEST_DRAWING
            self.call_after_refresh(self._drawn, began)

    def _drawn(self, began: float) -> None:
        """A long answer takes long to draw, most of it in the layout: most of the time is the keys'."""
        self._draw_from = time.monotonic() + KEYS_SHARE * (time.monotonic() - began)

    def _meant_reply(self) -> tuple[Turn, Mode] | None:
        """The reply that was picked, else the last one: the adapter's where both answered."""
        if not self.conversation.turns:
            self.notify("Nothing was said yet.")
            return None
        if self._picked:
            return self._picked
        turn = self.conversation.turns[-1]
        return turn, "adapter" if "adapter" in turn.replies else "base"

    def _pick(self, reply: tuple[Turn, Mode] | None) -> None:
        """Copy and mark this reply from now on; None: the last one."""
        self._picked = reply
        for view in self.query(TurnView):
            mode = reply[1] if reply and reply[0] is view.turn else None
            if mode != view.picked:
                view.picked = mode
                view.redraw()
                if mode:
                    view.scroll_visible(animate=False)

    def on_example_picked(self, event: Example.Picked) -> None:
        """Into the line: enter sends it."""
        self.query_one("#question", Input).value = event.question

    def on_turn_view_picked(self, event: TurnView.Picked) -> None:
        """Pick by the mouse."""
        self._pick((event.turn, event.mode))

    # Actions

    def action_pick(self, steps: int) -> None:
        """Choose the reply that is copied and marked; before there is any, a question to begin with."""
        if not self.conversation.turns and self.query(Examples):
            self.query_one("#question", Input).value = self.query_one(Examples).step(steps)
            return
        replies = [(turn, mode) for turn in self.conversation.turns for mode in turn.replies]
        meant = self._meant_reply()
        if meant is not None:
            here = next(
                place for place, (turn, mode) in enumerate(replies) if turn is meant[0] and mode == meant[1]
            )
            self._pick(replies[max(0, min(len(replies) - 1, here + steps))])

    def action_page(self, pages: int) -> None:
        """Through the conversation by what is on the screen."""
        place = self.query_one("#conversation", VerticalScroll)
        (place.scroll_page_up if pages < 0 else place.scroll_page_down)(animate=False)

    def action_toggle_mode(self) -> None:
        """The next one answers from now on."""
        if self.entry is not None and self.entry.adapter is None:
            self.notify("There is no adapter yet: only the base can answer.")
            return
        names = list(MODES)
        self.mode = names[(names.index(self.mode) + 1) % len(names)]
        self._show_state()

    def action_set(self) -> None:
        """To strength, temperature and length in turn, and back to the line."""
        stops = ["strength", "temperature", "length", "question"]
        here = self.focused.id if self.focused and self.focused.id in stops else "question"
        self.query_one(f"#{stops[(stops.index(here or '') + 1) % len(stops)]}").focus()

    def action_stop(self) -> None:
        """Stop the answer; without one, leave the line, so that the number keys change the screen."""
        if self._answering is not None:
            self._answering.cancel()
        else:
            self.set_focus(None)

    def action_copy(self) -> None:
        """Put the reply on the clipboard."""
        if found := self._meant_reply():
            turn, mode = found
            self.run_worker(self._copy(turn.replies[mode].text.strip()))

    async def _copy(self, text: str) -> None:
        self.app.copy_to_clipboard(text)
        if program := shutil.which("pbcopy"):  # macOS's own terminal lets no program at the clipboard
            process = await asyncio.create_subprocess_exec(program, stdin=asyncio.subprocess.PIPE)
            await process.communicate(text.encode())
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
            write_atomically(path, self.conversation.markdown(self.entry.name))
            self.notify(f"The conversation is in {path}", markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)

    def action_mark(self) -> None:
        """Mark the reply as a leak, or take the mark back; kept in the run."""
        found = self._meant_reply()
        if found is None or self.entry is None:
            return
        turn, mode = found
        try:
            self.notify(toggle_mark(self.entry, self.conversation, turn, mode, "F8 mends it."), markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
        for view in self.query(TurnView):
            if view.turn is turn:
                view.redraw()

    def action_mend(self) -> None:
        """Train away what the adapter said and you marked as a leak."""
        if self.entry is None:
            return
        try:
            run = run_to_mend(self.entry)
            stages = stages_of_mend(run)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        if self.entry.run is None:
            self.unlearn.open(run_entry(run.path))
            self.opened()
        self.unlearn.start(stages)
        self._mending = run.path
        self.notify("Mending began.")

    def action_undo_mend(self) -> None:
        """Bring back the adapter from before the last mend."""
        run = self.entry.run if self.entry else None
        try:
            if run is None:
                raise UserError("only a run can have been mended: open one on Home")
            with run.writing():
                self.notify(f"{undo_mend(run).capitalize()}.", markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)

    def _see_mend(self) -> None:
        """Say what a mend has changed, once its worker has ended."""
        if self._mending is None:
            return
        if self.unlearn.is_working(self._mending):
            self._show_state()
            return
        path, self._mending = self._mending, None
        try:
            self._show_state()
            self.notify(mend_sentence(open_run(path)), markup=False)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)

    def action_anew(self) -> None:
        """Begin another conversation."""
        self._conversations[self._path] = Conversation(topic=self.conversation.topic)
        self._show_conversation()
        self._show_state()

    def _show_conversation(self) -> None:
        """Draw the conversation with what is open; an answer under way to another is stopped."""
        if self._answering is not None:
            self._answering = None
            for conversation in self._conversations.values():
                for turn in conversation.turns:
                    turn.stop()
        self._picked = None
        place = self.query_one("#conversation", VerticalScroll)
        place.remove_children()
        place.mount_all(TurnView(turn, self.conversation) for turn in self.conversation.turns)
        if self.entry is not None and not self.conversation.turns:
            place.mount(Examples(self.entry))
        place.anchor()
