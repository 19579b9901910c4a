"""One thread that owns the model: faces ask it and read what it says through queues.

mlx arrays belong to the thread that made them, so loading, toggling and generation all happen here.
One question runs at a time, is cancelled between two tokens, and several askers (a browser's tabs)
take turns.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError

if TYPE_CHECKING:
    from unlearn_mlx.inference.chat_model import ChatModel
    from unlearn_mlx.inference.generation import Request

Mode = str  # "base" or "adapter"; every name but "base" is answered with the adapter on

ADAPTERS_KEPT = 4  # those not in use are switched off, and going back to one costs nothing
CONVERSATIONS_KEPT = 12  # computed prompts: a base's and an adapter's for several tabs
MOST_CONVERSATION_BYTES = 2**29  # 4,000 tokens of an 8B model


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


@dataclass(frozen=True)
class _Question:
    conversations: dict[Mode, list[dict[str, str]]]
    temperature: float
    max_tokens: int
    seed: int
    strength: float
    adapter: Path | None
    goes_on: bool
    answering: Answering


class _Line:
    """Questions that wait: the askers take turns, each with its oldest question."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_asker: dict[str, deque[_Question]] = {}  # whose turn is next comes first
        self._taken: _Question | None = None  # the last one that was handed out
        self._end: BaseException | None = None

    def put(self, asker: str, question: _Question) -> None:
        with self._changed:
            if self._end is not None:
                raise self._end
            self._by_asker.setdefault(asker, deque()).append(question)
            self._changed.notify()

    def get(self) -> _Question | None:
        """Wait for a question; None once the line is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._by_asker or self._end is not None)
            if not self._by_asker:
                return None
            asker = next(iter(self._by_asker))
            questions = self._by_asker.pop(asker)
            question = questions.popleft()
            if questions:
                self._by_asker[asker] = questions
            self._taken = question
            return question

    def is_idle(self) -> bool:
        """Whether nobody waits, and more may come."""
        with self._changed:
            return not self._by_asker and self._end is None

    def close(self, reason: BaseException, at_once: bool = False) -> None:
        """Take no more questions: ``put`` raises the reason from now on. ``at_once`` cancels the others."""
        with self._changed:
            self._end = self._end or reason
            if at_once:
                waiting = [question for questions in self._by_asker.values() for question in questions]
                for question in [*waiting, *([self._taken] if self._taken else [])]:
                    question.answering.cancel()
            self._changed.notify()


class Engine:
    """A model and its adapters, in a thread of their own. It starts loading at once."""

    def __init__(self, model_name: str, adapter: Path | None) -> None:
        self._model_name, self._adapter_folder = model_name, adapter
        self._line = _Line()
        self._loaded = threading.Event()
        self._error: BaseException | None = None
        self._model: ChatModel | None = None
        self._adapters: dict[tuple[Path, int], Any] = {}  # by folder and time of change; last used last
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until the model is loaded, and say whether it is; raise what went wrong."""
        ready = self._loaded.wait(timeout)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return ready

    def answer(
        self,
        conversations: dict[Mode, list[dict[str, str]]],
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        strength: float = 1.0,
        adapter: Path | None = None,
        asker: str = "",
        goes_on: bool = True,
    ) -> Answering:
        """Answer one conversation a mode; several are decoded in one batch.

        ``adapter`` takes the place of the engine's own; askers take turns. Where the conversation
        ``goes_on``, what was computed of it is kept for its next turn.

        Raises:
            UserError: where the engine was closed or could not load its model.
        """
        answering = Answering()
        folder = adapter or self._adapter_folder
        question = _Question(
            conversations, temperature, max_tokens, seed, strength, folder, goes_on, answering
        )
        self._line.put(asker, question)
        return answering

    def close(self, at_once: bool = False) -> None:
        """End the thread; what was asked before is answered first, unless it is to end ``at_once``."""
        self._line.close(EnvironmentCannot("the model was closed: ask again"), at_once)
        self._thread.join()

    def _work(self) -> None:
        # The thread that started this one may not have been prepared: a browser's tab has its own.
        prepare_cpu()
        try:
            self._serve()
        finally:
            import mlx.core as mx

            if self._model is not None:
                self._model.release()
            # A thread that ends with streams of its own makes mlx abort when the process ends.
            mx.clear_streams()

    def _serve(self) -> None:
        try:
            from unlearn_mlx.inference.loading import load_by_name

            model = self._model = load_by_name(self._model_name)
            if self._adapter_folder:
                self._attach(model, self._adapter_folder)
        except BaseException as error:  # it is the asking threads' to handle
            self._error = error
            self._line.close(error)
        self._loaded.set()
        from mlx_lm.models.cache import LRUPromptCache

        self._prompt_cache = LRUPromptCache(CONVERSATIONS_KEPT, MOST_CONVERSATION_BYTES)
        if self._error is None:
            self._warm_up(model)
        while (question := self._line.get()) is not None:
            answering = question.answering
            answering.started.set()
            next_turn: list[Request] = []
            try:
                if self._error is not None:
                    raise self._error
                if not answering.stop.is_set():
                    next_turn = self._answer(model, question)
            except Cancelled:
                pass
            except BaseException as error:
                answering.pieces.put(error)
            finally:
                answering.pieces.put(None)
            self._compute(model, next_turn)

    def _attach(self, model: Any, folder: Path) -> Any:
        """The adapter of a folder, attached and switched on, all others off."""
        from unlearn_mlx.inference.adapters import load_adapter

        key = _version(folder)
        for other in self._adapters.values():
            other.switch(False)
        adapter = self._adapters.pop(key, None) or load_adapter(model.model, folder)
        adapter.switch(True)
        self._adapters[key] = adapter
        while len(self._adapters) > ADAPTERS_KEPT:
            self._adapters.pop(next(iter(self._adapters)))
        return adapter

    def _answer(self, model: Any, question: _Question) -> "list[Request]":
        """Answer a question. Returns what is known of the next turn's prompts, where there may be one."""
        from unlearn_mlx.inference.generation import decode

        modes = list(question.conversations)
        with_base = "base" in modes and len(modes) > 1
        if modes == ["base"]:
            # Off, the plain layers stand in the model: no strengths are needed.
            for adapter in self._adapters.values():
                adapter.switch(False)
        elif question.adapter is None:
            raise UserError("no adapter was given: only the base can answer")
        else:
            adapter = self._attach(model, question.adapter)
            adapter.set_strength(1.0 if with_base else question.strength)
        requests = [
            _request(question, mode, model.chat_tokens(conversation), with_base)
            for mode, conversation in question.conversations.items()
        ]
        written: list[list[int]] = [[] for _ in modes]
        shown = [""] * len(modes)
        stopped = question.answering.stop.is_set
        prompt_cache = self._prompt_cache if question.goes_on else None
        for index, token in decode(model, requests, question.seed, stopped, prompt_cache):
            if token is not None:
                written[index].append(token)
            text = model.text_of(written[index])
            # Half a character decodes to U+FFFD: it waits for its other half.
            if token is None or not text.endswith("\ufffd"):
                piece = text[len(shown[index]) :]
                shown[index] = text
                question.answering.pieces.put(Piece(modes[index], piece, finished=token is None))
        for index, mode in enumerate(modes):
            # An answer that reached its length in the middle of a character shows what there is of it.
            if rest := model.text_of(written[index])[len(shown[index]) :]:
                shown[index] += rest
                question.answering.pieces.put(Piece(mode, rest))
        if not question.goes_on:
            return []
        said = [
            [*conversation, {"role": "assistant", "content": text.strip()}]
            for conversation, text in zip(question.conversations.values(), shown, strict=True)
        ]
        return [
            replace(request, tokens=_start_of_next_turn(model, conversation), max_tokens=1)
            for request, conversation in zip(requests, said, strict=True)
        ]

    def _warm_up(self, model: Any) -> None:
        """Compute how every conversation starts: the first use of a model costs seconds."""
        from unlearn_mlx.inference.generation import Request

        for adapter in self._adapters.values():
            adapter.switch(False)
        self._compute(model, [Request("chat", _start_of_next_turn(model, []), 1, weights=("base",))])

    def _compute(self, model: Any, requests: "list[Request]") -> None:
        """Put prompts into the prompt cache while nobody waits; what is drawn after them is nobody's."""
        from unlearn_mlx.inference.generation import decode

        if requests and self._line.is_idle():
            with suppress(Exception):  # the next question meets it again, and says so
                for _ in decode(model, requests, 0, prompt_cache=self._prompt_cache):
                    pass


def _request(question: _Question, mode: Mode, tokens: list[int], with_base: bool) -> "Request":
    from unlearn_mlx.inference.generation import Request

    weights: tuple[Any, ...] = ("base",)
    if mode != "base" and question.adapter:
        weights = (question.strength, *_version(question.adapter))
    return Request(
        "chat",  # the same key: at a temperature both draw the same random numbers
        tuple(tokens),
        question.max_tokens,
        question.temperature,
        adapter_strength=(0.0 if mode == "base" else question.strength) if with_base else None,
        weights=weights,
    )


def _start_of_next_turn(model: Any, said: list[dict[str, str]]) -> tuple[int, ...]:
    """The tokens that every further question of a conversation has before its own."""
    from unlearn_mlx.inference.shared_prefix import common_prefix

    return tuple(common_prefix([model.chat_tokens(context_of(said, other)) for other in ("a", "b")]))


def _version(folder: Path) -> tuple[Path, int]:
    """What tells an adapter from another and from what stood in its folder before."""
    from unlearn_mlx.inference.adapters import WEIGHTS

    weights = folder / WEIGHTS
    return folder, weights.stat().st_mtime_ns if weights.exists() else 0


def context_of(messages: Sequence[dict[str, str]], question: str) -> list[dict[str, str]]:
    """A conversation so far and the next question."""
    return [*messages, {"role": "user", "content": question}]
