"""One thread that owns the model: faces ask it through a queue and get tokens through another.

mlx arrays belong to the thread that made them, so loading, toggling and generation all happen here.
A request is cancelled between two tokens; one request runs at a time, in order of arrival.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import Cancelled

Mode = str  # "base", "adapter" or "both"


@dataclass(frozen=True)
class Piece:
    """Some text of an answer. ``mode`` says whose it is; ``finished`` comes with the last one."""

    mode: Mode
    text: str
    finished: bool = False


@dataclass
class Answering:
    """An answer under way: iterate over its pieces, or cancel it."""

    pieces: "queue.Queue[Piece | BaseException | None]" = field(default_factory=queue.Queue)
    stop: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop at the next token."""
        self.stop.set()

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


@dataclass(frozen=True)
class _Question:
    conversations: dict[Mode, list[dict[str, str]]]
    temperature: float
    max_tokens: int
    seed: int
    strength: float
    answering: Answering


class Engine:
    """A model and, if there is one, its adapter, in a thread of their own."""

    def __init__(self, model_name: str, adapter: Path | None) -> None:
        self._model_name, self._adapter_folder = model_name, adapter
        self._questions: queue.Queue[_Question | None] = queue.Queue()
        self._ready: queue.Queue[BaseException | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded; raise what went wrong."""
        error = self._ready.get()
        self._ready.put(error)
        if error is not None:
            self._thread.join()
            raise error

    def answer(
        self,
        conversations: dict[Mode, list[dict[str, str]]],
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        strength: float = 1.0,
    ) -> Answering:
        """Answer one conversation a mode ("base", "adapter"); two are decoded in one batch."""
        answering = Answering()
        self._questions.put(_Question(conversations, temperature, max_tokens, seed, strength, answering))
        return answering

    def close(self) -> None:
        """End the thread; an answer under way is finished first."""
        self._questions.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            import mlx.core as mx

            # A thread that ends with streams of its own makes mlx abort when the process ends.
            mx.clear_streams()

    def _serve(self) -> None:
        try:
            from unlearn_mlx.language_model.adapters import load_adapter
            from unlearn_mlx.language_model.models import load_model, resolve_model

            model = load_model(resolve_model(self._model_name))
            adapter = load_adapter(model.model, self._adapter_folder) if self._adapter_folder else None
        except BaseException as error:  # it is the asking thread's to handle
            self._ready.put(error)
            return
        self._ready.put(None)
        while (question := self._questions.get()) is not None:
            try:
                self._answer(model, adapter, question)
            except Cancelled:
                pass
            except BaseException as error:
                question.answering.pieces.put(error)
            finally:
                question.answering.pieces.put(None)

    def _answer(self, model: Any, adapter: Any, question: _Question) -> None:
        from unlearn_mlx.language_model.generation import Request, decode

        modes = list(question.conversations)
        if adapter is not None:
            # One mode alone needs no strengths: off, the plain layers stand in the model.
            adapter.switch(modes != ["base"])
            adapter.set_strength(question.strength if len(modes) == 1 else 1.0)
        strengths = {"base": 0.0, "adapter": question.strength}
        requests = [
            # The same key: at a temperature both draw the same random numbers.
            Request(
                "chat",
                tuple(model.chat_tokens(conversation)),
                question.max_tokens,
                question.temperature,
                adapter_strength=strengths[mode] if len(modes) > 1 else None,
            )
            for mode, conversation in question.conversations.items()
        ]
        written: list[list[int]] = [[] for _ in modes]
        shown = [""] * len(modes)
        for index, token in decode(model, requests, question.seed, question.answering.stop.is_set):
            if token is not None:
                written[index].append(token)
            text = model.text_of(written[index])
            # Half a character decodes to U+FFFD: it waits for its other half.
            if token is None or not text.endswith("\ufffd"):
                piece = text[len(shown[index]) :]
                shown[index] = text
                question.answering.pieces.put(Piece(modes[index], piece, finished=token is None))


def context_of(messages: Sequence[dict[str, str]], question: str) -> list[dict[str, str]]:
    """A conversation so far and the next question."""
    return [*messages, {"role": "user", "content": question}]
