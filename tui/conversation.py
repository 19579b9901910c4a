"""A conversation with base and adapter: its turns, what each model is told of them, and its export."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tui.text import leaked_names
from unlearn_mlx.inference.engine import Mode, Piece, context_of
from unlearn_mlx.text.printable import one_line, printable
from unlearn_mlx.topics import Topic

MODES: dict[str, tuple[Mode, ...]] = {"adapter": ("adapter",), "base": ("base",), "both": ("base", "adapter")}
TURNS_KEPT = 8  # that are fed back: a small model loses itself in longer conversations


@dataclass
class Reply:
    """What one model answers. ``state`` is "asked", then "answered" or why it broke off."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0  # clock of the first and the last token
    last: float = 0.0
    state: str = "asked"
    is_marked: bool = False  # as a leak, by the user

    @property
    def speed(self) -> float:
        """Tokens a second, from the first one on; 0 where there are too few to tell."""
        return (self.tokens - 1) / (self.last - self.first) if self.tokens > 2 else 0.0

    def take(self, piece: Piece) -> None:
        """Add what has come."""
        self.text += piece.text
        if piece.finished:
            self.state = "answered"
        else:
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.tokens += 1


@dataclass
class Turn:
    """A question and its replies by mode, with what they were made with."""

    question: str
    replies: dict[Mode, Reply]
    strength: float
    temperature: float

    def end(self, state: str) -> None:
        """What is still under way ends in this state."""
        for reply in self.replies.values():
            if reply.state == "asked":
                reply.state = state

    def heading(self, mode: Mode) -> str:
        """Who speaks, how strongly and how fast."""
        reply = self.replies[mode]
        parts = [mode]
        if mode != "base" and self.strength != 1:
            parts.append(f"strength {self.strength:g}")
        if reply.speed:
            parts.append(f"{reply.speed:.1f} tokens/s")
        parts.append({"asked": "...", "answered": ""}.get(reply.state, reply.state))
        return " · ".join(part for part in parts if part)


@dataclass
class Conversation:
    """The turns so far."""

    turns: list[Turn] = field(default_factory=list)

    def contexts(self, question: str, modes: Sequence[Mode]) -> dict[Mode, list[dict[str, str]]]:
        """What each model is told: what the other one said is no word of its own."""
        contexts = {}
        for mode in modes:
            messages: list[dict[str, str]] = []
            for turn in [turn for turn in self.turns if mode in turn.replies][-TURNS_KEPT:]:
                reply = turn.replies[mode]
                if reply.text.strip():
                    messages += context_of([], turn.question)
                    messages.append({"role": "assistant", "content": reply.text.strip()})
            contexts[mode] = context_of(messages, question)
        return contexts

    def markdown(self, title: str, topic: Topic | None) -> str:
        """The conversation as Markdown; what was said stands in fences, as it was said."""
        parts = [f"# Chat: {_escaped(title)}"]
        for turn in self.turns:
            parts.append(f"## You\n\n{_fenced(turn.question)}")
            for mode, reply in turn.replies.items():
                facts = [turn.heading(mode), f"temperature {turn.temperature:g}"]
                names = leaked_names(topic, turn.question, printable(reply.text)) if topic else []
                if names:
                    facts.append("leaks " + ", ".join(names))
                if reply.is_marked:
                    facts.append("marked as a leak")
                parts.append(f"### {_escaped(' · '.join(facts))}\n\n{_fenced(reply.text.strip())}")
        return "\n\n".join(parts) + "\n"


def mark_row(turn: Turn, mode: Mode) -> dict[str, Any]:
    """A reply that the user marked as a leak, as it is kept in the run."""
    reply = turn.replies[mode]
    return {
        "question": turn.question,
        "answer": reply.text.strip(),
        "mode": mode,
        "strength": turn.strength,
        "temperature": turn.temperature,
        "marked": reply.is_marked,
    }


def _fenced(text: str) -> str:
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", one_line(text))
