"""Questions that want an answer before anything else goes on."""

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, Label, Select, Static, TextArea

from tui.line_input import LineInput
from tui.text import shown
from unlearn_mlx.text.printable import one_line, printable

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer]):
    """Lies over a screen, with its own keys below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "app.help", "Help", key_display="?"),
        Binding("ctrl+p", "app.command_palette", "More"),
    ]

    def compose(self) -> ComposeResult:
        """The dialog, and its keys in the place of the screen's."""
        yield from self.body()
        yield Footer(compact=True, show_command_palette=False)

    def body(self) -> ComposeResult:
        """The dialog's own widgets."""
        raise NotImplementedError


class Choice(Dialog[str]):
    """A question with some answers; escape is the last one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back"),
        Binding("up", "app.focus_previous", "Up", show=False),
        Binding("down", "app.focus_next", "Down", show=False),
    ]

    def __init__(self, question: str, answers: dict[str, str]) -> None:
        """``answers`` maps what is returned to what is shown."""
        super().__init__()
        self.question, self.answers = question, answers

    def body(self) -> ComposeResult:
        """The question over a row of buttons."""
        with Vertical(classes="dialog"):
            yield Static(shown(self.question))
            for name, text in self.answers.items():
                yield Button(text, name=name, id=name.replace(" ", "-"), compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """That is the answer."""
        self.dismiss(event.button.name)

    def action_leave(self) -> None:
        """The last answer is the one that changes nothing."""
        self.dismiss(list(self.answers)[-1])


class Line(Dialog[str]):
    """Asks for one line of text; empty where it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back")]

    def __init__(self, title: str, value: str = "", hint: str = "") -> None:
        super().__init__()
        self.heading, self.value, self.hint = title, value, hint

    def body(self) -> ComposeResult:
        """The title over the line."""
        with Vertical(classes="dialog"):
            yield Static(shown(self.heading))
            yield LineInput(one_line(self.value), placeholder=self.hint, compact=True)
            yield Static("enter: take it · escape: back", classes="hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the line."""
        self.dismiss(event.value.strip())

    def action_leave(self) -> None:
        """Leave without a text."""
        self.dismiss("")


Fields = tuple[str, str, bool]  # of the editor: question, answer, accepted


class PairEditor(Dialog[Fields | None]):
    """A question and its answer to edit, and whether it is trained on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", "Keep", priority=True),
        Binding("escape", "leave", "Back"),
    ]

    def __init__(self, title: str, question: str = "", answer: str = "", accepted: bool = True) -> None:
        super().__init__()
        self.heading, self.question, self.answer, self.accepted = title, question, answer, accepted

    def body(self) -> ComposeResult:
        """Two fields, a choice and two buttons."""
        with Vertical(classes="dialog"):
            yield Label(self.heading)
            yield LineInput(one_line(self.question), placeholder="question", id="question", compact=True)
            yield TextArea(printable(self.answer), id="answer", compact=True, tab_behavior="focus")
            choices = [("train on it", True), ("leave it out", False)]
            yield Select(choices, id="accepted", value=self.accepted, allow_blank=False, compact=True)
            with Horizontal(classes="buttons"):
                yield Button("Keep (ctrl+s)", id="keep", compact=True)
                yield Button("Back (escape)", id="back", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Keep or leave."""
        if event.button.id == "keep":
            self.action_keep()
        else:
            self.action_leave()

    def action_keep(self) -> None:
        """Hand the pair back, unless a part of it is missing."""
        question = one_line(self.query_one("#question", Input).value)
        answer = one_line(self.query_one("#answer", TextArea).text)
        if not question or not answer:
            self.notify("A pair needs a question and an answer.", severity="warning")
            return
        self.dismiss((question, answer, bool(self.query_one("#accepted", Select).value)))

    def action_leave(self) -> None:
        """Change nothing."""
        self.dismiss(None)


def sentence(parts: Sequence[str]) -> str:
    """Parts that are there, joined by dots."""
    return " · ".join(part for part in parts if part)
