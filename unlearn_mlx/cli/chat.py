"""``unlearn chat``: talk to the base, the adapter or both, toggled in the middle of a conversation."""

import math
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from unlearn_mlx.cli.consoles import data_console
from unlearn_mlx.cli.output import say
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.asking import Mode, Piece
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.reporting.terminal import plain
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.session.catalog import Entry, opened_entry
from unlearn_mlx.session.conversation import MEMORY, MODES, Conversation, Manner, Turn, leak_in
from unlearn_mlx.session.marking import marks_to_mend, toggle_mark
from unlearn_mlx.text.printable import one_line

LOOK = 0.5  # seconds between two looks at how much of a long prompt was read

HELP = (
    f"/base, /adapter or /both choose who answers. {MEMORY} /leak marks the adapter's last answer as a leak, "
    "or takes the mark back; /clear starts anew; /quit ends. Ctrl-C stops an answer."
)


def chat(name: str, model_name: str | None, temperature: float, max_tokens: int) -> int:
    """Chat until /quit or the end of the input. Returns the exit code.

    Raises:
        UserError: where the run has no adapter, or an option is out of bounds.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature}: it is 0 (greedy) or a number above, such as 0.8")
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens}: an answer has at least one token")
    adapter, model, entry = _opened(name, model_name)
    with suppress(ImportError):
        # Where it is there, ``input`` has a history that the arrow keys go through.
        import readline  # noqa: F401
    say(f"Loading {model} ...")
    engine = Engine(model, adapter)
    try:
        engine.wait_until_ready()
        say(HELP)
        topic = entry.topic if entry else None
        talk = _Talk(engine, entry, temperature, max_tokens, Conversation(topic=topic))
        talk.go_on()
        if entry and marks_to_mend(entry):
            say(f"Next: unlearn mend {shell_word(name)}")
    finally:
        # However the chat ends: a thread that still computes would make mlx abort at the process's end.
        engine.close(at_once=True)
    return 0


def _opened(name: str, model_name: str | None) -> tuple[Path, str, Entry | None]:
    """The adapter, its model, and what is known of both; nothing is of an adapter that is only a folder.

    Raises:
        UserError: where there is none, or it is another model's.
    """
    from unlearn_mlx.models.registry import name_here

    entry = opened_entry(name)
    if entry is None:
        return Path(name), model_name or "smollm2", None
    if model_name is not None and entry.model_name not in (model_name, name_here(model_name)):
        raise UserError(
            f"--model {model_name}: {entry.path} has its own model, {entry.model_name}; leave it out"
        )
    adapter = entry.run.finished_adapter() if entry.run else entry.path
    return adapter, entry.model_name, entry


@dataclass
class _Talk:
    """A conversation in the terminal, and how it is led."""

    engine: Engine
    entry: Entry | None
    temperature: float
    max_tokens: int
    conversation: Conversation
    mode: str = "adapter"
    shown: Console = field(default_factory=data_console)

    def go_on(self) -> None:
        """Ask what comes, line by line, until /quit or the end."""
        while True:
            try:
                line = input(f"{self.mode}> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                say(HELP)
                continue
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                manner = Manner(MODES[self.mode], temperature=self.temperature, max_tokens=self.max_tokens)
                self._answer(Turn(line, manner))

    def _command(self, line: str) -> None:
        if line[1:] in MODES:
            self.mode = line[1:]
            say(f"Now {self.mode} answers.")
        elif line == "/clear":
            self.conversation = Conversation(topic=self.conversation.topic)
        elif line == "/leak":
            self._mark()
        else:
            say(f"No command {one_line(line)}. {HELP}")

    def _mark(self) -> None:
        """Mark the adapter's last answer as a leak, or take the mark back."""
        turns = [turn for turn in self.conversation.turns if "adapter" in turn.replies]
        if not turns or not turns[-1].replies["adapter"].text.strip():
            say("There is no answer of the adapter to mark: ask something first.")
        elif self.entry is None:
            say("Only a run keeps its marks: 'unlearn import FOLDER --topic TOPIC' makes one of an adapter.")
        else:
            try:
                say(toggle_mark(self.entry, self.conversation, turns[-1], "adapter"))
            except UserError as error:
                say(f"Not marked: {error}")

    def _answer(self, turn: Turn) -> None:
        """Show the answers token by token, the base's first: what the other says meanwhile waits for it."""
        answering = self.conversation.ask(self.engine, turn)
        stream = Stream(self.shown, list(turn.manner.modes))
        told = ""
        try:
            while not answering.ended:
                for piece in answering.read(LOOK):
                    turn.take(piece)
                    stream.show(piece)
                if turn.reading() not in ("", told):
                    told = turn.reading()
                    say(told)
            turn.state = "answered"
        except KeyboardInterrupt:
            turn.stop()
            for _ in answering:
                pass
            print(" [stopped]", end="", file=sys.stderr)
        stream.finish()
        for mode in turn.manner.modes:
            facts = [turn.timing(mode)]
            said = turn.replies[mode].text
            if leak := leak_in(self.conversation.topic, self.conversation.asked(turn), said):
                facts.append(f"leaks: {leak.reason}")
            if any(facts):
                say(f"[{mode}: {' · '.join(filter(None, facts))}]")


class Stream:
    """Answers on their way to the terminal, one mode after the other."""

    def __init__(self, shown: Console, modes: list[Mode]) -> None:
        self.shown, self.modes = shown, modes
        self.is_named = len(modes) > 1
        self.waiting: dict[Mode, str] = dict.fromkeys(modes, "")
        self.is_begun = False

    def show(self, piece: Piece) -> None:
        """Show a piece of the mode whose turn it is; another's waits."""
        self.waiting[piece.mode] += piece.text
        self._flush()
        if piece.finished and piece.mode == self.modes[0] and len(self.modes) > 1:
            self._next()

    def finish(self) -> None:
        """Show all that still waits, and end the line."""
        while len(self.modes) > 1:
            self._next()
        self._flush(ends=True)
        self.shown.print()

    def _flush(self, ends: bool = False) -> None:
        """Show what waits of the mode whose turn it is; its name where that begins, or ``ends`` empty."""
        mode = self.modes[0]
        text = self.waiting[mode] if self.is_begun else self.waiting[mode].lstrip()
        name = f"{mode}: " if self.is_named and not self.is_begun else ""
        if text or (ends and name):
            self.is_begun, self.waiting[mode] = True, ""
            self.shown.print(plain(name + text), end="", soft_wrap=True)

    def _next(self) -> None:
        self._flush(ends=True)
        self.shown.print()
        self.modes, self.is_begun = self.modes[1:], False
        self._flush()
