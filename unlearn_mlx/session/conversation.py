"""A conversation with base and adapter: its turns, what each mode is told of them, leaks, and its export."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from unlearn_mlx.inference.asking import Answering, Mode, Piece, context_of
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.leakage.names import Leak, named
from unlearn_mlx.text.printable import one_line, printable
from unlearn_mlx.topics import Topic

MODES: dict[str, tuple[Mode, ...]] = {"adapter": ("adapter",), "base": ("base",), "both": ("base", "adapter")}
TURNS_KEPT = 8  # at most, that are fed back: a small model loses itself in longer conversations
TURNS_LEFT_OUT = 3  # at once, of a longer one: what was computed of the others serves until it starts anew

# The rule by which ``told`` goes, as every face's help says it.
MEMORY = (
    "Whoever answers is told all questions so far, with the answers that it gave itself and, where it gave "
    "none, those of the other one."
)


@dataclass(frozen=True)
class Manner:
    """How a question is answered; all modes share it."""

    modes: tuple[Mode, ...]
    strength: float = 1.0
    temperature: float = 0.0
    max_tokens: int = 128
    seed: int = 0


@dataclass
class Reply:
    """What one model answers. ``finished`` is whether it ended by itself."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0  # clock of the first and the last token
    last: float = 0.0
    finished: bool = False
    is_marked: bool = False  # as a leak, by the user

    @property
    def speed(self) -> float:
        """Tokens a second, from the first one on; 0 where there are too few to tell."""
        return (self.tokens - 1) / (self.last - self.first) if self.tokens > 2 else 0.0

    def take(self, piece: Piece) -> None:
        """Add what has come."""
        self.text += piece.text
        if piece.finished:
            self.finished = True
        else:
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.tokens += 1


@dataclass
class Turn:
    """A question and its replies by mode. ``takes`` is how often it was answered before.

    ``state`` is "asked", then "answering", and "answered", "stopped" or what went wrong.
    """

    question: str
    manner: Manner
    takes: int = 0  # each take draws other random numbers
    state: str = "asked"
    replies: dict[Mode, Reply] = field(default_factory=dict)
    began: float = 0.0  # clock of the asking
    answering: Answering | None = None

    def __post_init__(self) -> None:
        self.replies = self.replies or {mode: Reply() for mode in self.manner.modes}

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return self.state in ("asked", "answering")

    def take(self, piece: Piece) -> None:
        """Add what has come."""
        self.replies[piece.mode].take(piece)

    def waited(self, mode: Mode) -> float | None:
        """Seconds to the first token, where it has come."""
        reply = self.replies[mode]
        return max(0.0, reply.first - self.began) if reply.first and self.began else None

    def timing(self, mode: Mode) -> str:
        """Seconds to the first token, and tokens a second from then on, as far as they are known."""
        waited, speed = self.waited(mode), self.replies[mode].speed
        parts = [] if waited is None else [f"first token after {waited:.2f} s"]
        return " · ".join([*parts, f"{speed:.1f} tokens/s"] if speed else parts)

    def reading(self) -> str:
        """How much of a long prompt the model has read; empty once it answers."""
        read, total = self.answering.prompt if self.answering else (0, 0)
        is_waiting = self.state == "answering" and not any(reply.tokens for reply in self.replies.values())
        return f"reading: {read:,} of {total:,} tokens" if total and is_waiting else ""

    def is_cut(self, mode: Mode) -> bool:
        """Whether a reply reached its length before its end."""
        return self.state == "answered" and not self.replies[mode].finished

    def said_by(self, mode: Mode) -> str:
        """What a mode answered; where it has not, what another one did. Empty where nobody has."""
        own = [self.replies[mode]] if mode in self.replies else []
        said = (reply.text.strip() for reply in [*own, *self.replies.values()])
        return next(filter(None, said), "")

    def stop(self) -> None:
        """End an answer that is under way."""
        if self.state == "answering":
            self.state = "stopped"
        if self.answering:
            self.answering.cancel()

    def heading(self, mode: Mode) -> str:
        """Who speaks, how strongly and how fast, and how it ended where it did not by itself."""
        reply = self.replies[mode]
        parts = [mode]
        if mode != "base" and self.manner.strength != 1:
            parts.append(f"strength {self.manner.strength:g}")
        parts += filter(None, [self.timing(mode), self.reading()])
        if self.is_cut(mode):
            parts.append("cut at its length")
        elif not reply.finished:
            parts.append("..." if self.is_open else "stopped" if self.state == "stopped" else "failed")
        return " · ".join(parts)


@dataclass
class Conversation:
    """The turns so far. ``topic`` is what must not be given away, None where that is not known."""

    turns: list[Turn] = field(default_factory=list)
    topic: Topic | None = None

    def ask(self, engine: Engine, turn: Turn, adapter: Path | None = None, asker: str = "") -> Answering:
        """Ask a turn's question, which becomes the last one where it is not among them yet.

        Raises:
            UserError: where the engine was closed or could not load its model.
        """
        manner = turn.manner
        answering = engine.answer(
            {mode: self.told(mode, turn) for mode in manner.modes},
            temperature=manner.temperature,
            max_tokens=manner.max_tokens,
            seed=manner.seed + turn.takes,
            strength=manner.strength,
            adapter=adapter,
            asker=asker,
        )
        turn.answering, turn.state, turn.began = answering, "answering", time.monotonic()
        if not any(turn is other for other in self.turns):
            self.turns.append(turn)
        return answering

    def told(self, mode: Mode, turn: Turn) -> list[dict[str, str]]:
        """What a model is told to answer a turn: all questions, each with its own answer to it.

        Where it gave none the other one's stands there, and what nobody answered is left out.
        """
        messages: list[dict[str, str]] = []
        for earlier in self.fed_back(turn):
            messages += context_of([], earlier.question)
            messages.append({"role": "assistant", "content": earlier.said_by(mode)})
        return context_of(messages, turn.question)

    def fed_back(self, turn: Turn) -> list[Turn]:
        """The turns before one that models are told of: the last ones that somebody answered."""
        answered = [other for other in self._before(turn) if other.said_by("")]
        too_many = max(0, len(answered) - TURNS_KEPT)
        return answered[-(-too_many // TURNS_LEFT_OUT) * TURNS_LEFT_OUT :]

    def asked(self, turn: Turn) -> str:
        """All that the user has said up to a turn: an answer that says it again gives nothing away."""
        return "\n".join(other.question for other in [*self._before(turn), turn])

    def _before(self, turn: Turn) -> list[Turn]:
        place = next((place for place, other in enumerate(self.turns) if other is turn), len(self.turns))
        return self.turns[:place]

    def markdown(self, title: str) -> str:
        """The conversation as Markdown; what was said stands in fences, as it was said."""
        parts = [f"# Chat: {_escaped(title)}"]
        for turn in self.turns:
            parts.append(f"## You\n\n{_fenced(turn.question)}")
            for mode, reply in turn.replies.items():
                facts = [turn.heading(mode), f"temperature {turn.manner.temperature:g}"]
                if leak := leak_in(self.topic, self.asked(turn), reply.text):
                    facts.append(f"leaks: {leak.reason}")
                if reply.is_marked:
                    facts.append("marked as a leak")
                parts.append(f"### {_escaped(' · '.join(facts))}\n\n{_fenced(reply.text.strip())}")
        return "\n\n".join(parts) + "\n"


def leak_in(topic: Topic | None, asked: str, answer: str) -> Leak | None:
    """The names that an answer says and the user has not asked with, where they stand in it as printable."""
    return named(topic, asked, printable(answer)) if topic else None


def leak_pieces(answer: str, leak: Leak | None) -> list[tuple[str, bool]]:
    """The printable answer in pieces, each with whether it is of the leak that ``leak_in`` found."""
    text = printable(answer)
    pieces, last = [], 0
    for start, end in leak.spans if leak else ():
        pieces += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [*pieces, (text[last:], False)]


def _fenced(text: str) -> str:
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", one_line(text))
