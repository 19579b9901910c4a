"""Questions of a chat on their way to the engine's thread, and answers on their way back."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from unlearn_mlx.errors import Cancelled

if TYPE_CHECKING:
    from unlearn_mlx.inference.chat_model import ChatModel
    from unlearn_mlx.inference.rows import Listener, Row, RowPiece, RowRequest

Mode = str  # "base" or "adapter"; every name but "base" is answered with the adapter on


@dataclass(frozen=True)
class Piece:
    """Some text of an answer. ``mode`` says whose it is; ``finished`` comes with the last one."""

    mode: Mode
    text: str
    finished: bool = False


@dataclass
class Answering:
    """An answer under way: iterate over its pieces or ``read`` them; ``cancel`` ends it."""

    pieces: "queue.Queue[Piece | BaseException | None]" = field(default_factory=queue.Queue)
    stop: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)  # its turn has come
    ended: bool = False  # its last piece has been read
    prompt: tuple[int, int] = (0, 0)  # tokens of a long prompt that were read, and all of them

    def read_prompt(self, done: int, total: int) -> None:
        """Note how much of a long prompt the model has read."""
        self.prompt = (done, total)

    def cancel(self) -> None:
        """Stop at the next token."""
        self.stop.set()

    def __iter__(self) -> Iterator[Piece]:
        while not self.ended:
            yield from self.read()

    def read(self, timeout: float | None = None) -> list[Piece]:
        """The pieces that have come; waits for the first, ``timeout`` seconds at most.

        Raises what went wrong in the engine.
        """
        pieces: list[Piece] = []
        try:
            piece = self.pieces.get(timeout=timeout)
            while isinstance(piece, Piece):
                pieces.append(piece)
                piece = self.pieces.get_nowait()
        except queue.Empty:
            return pieces
        self.ended = True
        if piece is not None:
            raise piece
        return pieces


class Question:
    """A question of a chat, which one or several modes answer."""

    def __init__(
        self,
        conversations: dict[Mode, list[dict[str, str]]],
        manner: "Callable[[Mode, tuple[int, ...]], RowRequest]",
        goes_on: bool,
        asker: str,
    ) -> None:
        self.conversations, self.manner, self.goes_on, self.asker = conversations, manner, goes_on, asker
        self.answering = Answering()
        self.said = dict.fromkeys(conversations, "")
        self.open = set(conversations)  # the modes that have not ended
        self.has_failed = False
        self._read: dict[Mode, tuple[int, int]] = {}  # of long prompts: tokens that were read, and all

    @property
    def is_gone(self) -> bool:
        """Whether it was cancelled."""
        return self.answering.stop.is_set()

    def begin(self, model: "ChatModel") -> "list[Row]":
        """Its rows, one a mode."""
        from unlearn_mlx.inference.rows import Row

        self.answering.started.set()
        requests = {
            mode: self.manner(mode, tuple(model.chat_tokens(conversation)))
            for mode, conversation in self.conversations.items()
        }
        return [
            Row(request, self._listener(mode), self.asker, self.answering.stop, self._reader(mode))
            for mode, request in requests.items()
        ]

    def fail(self, error: BaseException) -> None:
        """End it with an error, which nobody hears who has cancelled it."""
        if not self.has_failed:
            self.has_failed = True
            if not isinstance(error, Cancelled):
                self.answering.pieces.put(error)
            self.answering.pieces.put(None)
            self.answering.cancel()

    def next_turn(self, model: "ChatModel") -> "list[RowRequest]":
        """What is known of the next turn's prompts."""
        if not self.goes_on or self.has_failed:
            return []
        said = {
            mode: [*conversation, {"role": "assistant", "content": self.said[mode].strip()}]
            for mode, conversation in self.conversations.items()
        }
        return [
            replace(self.manner(mode, start_of_next_turn(model, told)), max_tokens=0)
            for mode, told in said.items()
        ]

    def _reader(self, mode: Mode) -> "Callable[[int, int], None]":
        def read(done: int, total: int) -> None:
            self._read[mode] = (done, total)
            both = zip(*self._read.values(), strict=True)
            self.answering.read_prompt(*map(sum, both))

        return read

    def _listener(self, mode: Mode) -> "Listener":
        def hear(news: "RowPiece | BaseException") -> None:
            if isinstance(news, BaseException):
                self.fail(news)
                return
            self.said[mode] += news.text
            if news.text or news.finish == "stop":
                self.answering.pieces.put(Piece(mode, news.text, finished=news.finish == "stop"))
            if news.finish:
                self.open.discard(mode)
                if not self.open and not self.has_failed:
                    self.answering.pieces.put(None)

        return hear


def start_of_next_turn(model: "ChatModel", said: list[dict[str, str]]) -> tuple[int, ...]:
    """The tokens that every further question of a conversation has before its own."""
    from unlearn_mlx.inference.shared_prefix import common_prefix

    return tuple(common_prefix([model.chat_tokens(context_of(said, other)) for other in ("a", "b")]))


def context_of(messages: Sequence[dict[str, str]], question: str) -> list[dict[str, str]]:
    """A conversation so far and the next question."""
    return [*messages, {"role": "user", "content": question}]
