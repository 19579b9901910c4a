"""One answer of many that are decoded together: what is asked, what has come, and who hears of it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.cpu_math import log_sum_exp
from unlearn_mlx.inference.answer_text import AnswerText
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.row_adapters import BASE, Weights
from unlearn_mlx.inference.sampling import Sampling, draw
from unlearn_mlx.seeding import random_source

GREEDY = Sampling()
BEFORE = 8  # tokens of a text that goes on, with which its next ones are decoded


@dataclass(frozen=True)
class RowRequest:
    """What one row is asked. ``key`` and ``seed`` are where its randomness comes from."""

    tokens: tuple[int, ...]
    max_tokens: int  # 0 where the prompt alone is to be computed
    sampling: Sampling = GREEDY
    key: str = "chat"
    seed: int = 0
    adapter: Path | None = None  # its folder; None is the base
    strength: float = 1.0
    stop: tuple[str, ...] = ()
    likeliest: int | None = None  # how many tokens to score beside each of the answer; None scores none
    scores_prompt: bool = False  # the prompt's tokens too
    is_kept: bool = True  # in the prompt cache, for what goes on from there
    continues: bool = False  # the prompt is a text, and the answer its next words


@dataclass(frozen=True)
class ScoredToken:
    """A token's bytes and natural log-probability, and those of the likeliest tokens in its place."""

    token: bytes
    log_probability: float | None  # None for a text's first, which nothing stands before
    likeliest: tuple[tuple[bytes, float], ...]
    offset: int = 0  # characters of the answer before it


@dataclass(frozen=True)
class RowPiece:
    """Some text of a row. The last one has ``finish``: "stop", or "length" where it was cut off."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()  # whose text this is, where they are scored
    prompt: tuple[ScoredToken, ...] = ()  # with the first piece, where the prompt is scored
    finish: str = ""
    count: int = 0  # tokens of the answer so far


Listener = Callable[[RowPiece | BaseException], None]


class Row:
    """An answer under way. ``listener`` hears its pieces, then no more after the last or an error."""

    def __init__(
        self,
        request: RowRequest,
        listener: Listener,
        asker: str = "",
        stop: threading.Event | None = None,
        on_prompt: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """``on_prompt`` is told of each part of a long prompt: tokens that are computed, and all of them."""
        self.request, self.asker, self.on_prompt = request, asker, on_prompt
        self._listener = listener
        self._stop = stop or threading.Event()
        self.has_ended = False
        self.weights: Weights = BASE
        self.cache: list[Any] | None = None  # of its own, until it joins the others
        self.filled = 0  # tokens that this cache has
        self.kept = 0  # and those that were there already
        self.drawn: list[int] = []
        self.stay = 0  # tokens drawn since it joined the others
        self.source = random_source(request.seed, request.key)
        sampling = request.sampling
        is_simple = sampling == Sampling(sampling.temperature, sampling.min_p)
        self.may_draw_on_device = is_simple and request.likeliest is None
        self._text: AnswerText | None = None
        self._prompt: list[ScoredToken] = []
        self._unshown: list[ScoredToken] = []
        self._length = 0  # of the answer's text

    def cancel(self) -> None:
        """Let it end before its next token."""
        self._stop.set()

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it any longer."""
        return self._stop.is_set()

    @property
    def tokens(self) -> list[int]:
        """Of the prompt and the answer so far."""
        return [*self.request.tokens, *self.drawn]

    @property
    def size(self) -> int:
        """How many tokens those are."""
        return len(self.request.tokens) + len(self.drawn)

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are still to be scored."""
        return self.request.scores_prompt and not self.drawn

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self._tell(error)

    def leave(self) -> None:
        """Let it wait for its turn again; what it said stays."""
        self.cache, self.filled, self.stay, self._prompt = None, 0, 0, []

    def score_prompt(self, model: ChatModel, logits: mx.array, first: int) -> None:
        """Score the prompt's tokens from the one behind ``first``, by the logits that predict them."""
        tokens = self.request.tokens
        if not self._prompt:
            self._prompt.append(ScoredToken(model.bytes_of(tokens[0]), None, ()))
        targets = tokens[first + 1 : first + 1 + logits.shape[0]]
        self._prompt += scored(model, logits[: len(targets)], targets, self.request.likeliest or 0)

    def draw(self, model: ChatModel, scores: np.ndarray, logits: mx.array) -> None:
        """Draw its next token by its scores, [vocabulary], which are ``logits``, [1, vocabulary]."""
        if self.request.max_tokens == 0:
            self._tell(RowPiece("", prompt=tuple(self._prompt), finish="length"))
            return
        request = self.request
        token = draw(scores, request.sampling, self.source, request.tokens, self.drawn)
        self.take(model, token, logits)

    def take(self, model: ChatModel, token: int, logits: mx.array | None = None) -> None:
        """Go on with a token, which is scored by ``logits`` where tokens are to be."""
        request = self.request
        if self._text is None:
            before = request.tokens[-BEFORE:] if request.continues else ()
            self._text = AnswerText(model.decoded, request.stop, before)
        if token in model.stop_tokens:
            self._show(self._text.finish(), "stop")
            return
        self.drawn.append(token)
        self.stay += 1
        if request.likeliest is not None and logits is not None:
            score = scored(model, logits, [token], request.likeliest, self._text.length)
            self._unshown += score
        text, has_stopped = self._text.take(token)
        is_long = len(self.drawn) >= request.max_tokens or self.size >= model.context
        if is_long and not has_stopped:
            text += self._text.finish()
        self._show(text, "stop" if has_stopped else "length" if is_long else "")

    def _show(self, text: str, finish: str) -> None:
        self._length += len(text)
        shown: list[ScoredToken] = []
        if finish:
            # What a stop word cut off is no part of the answer.
            shown = [each for each in self._unshown if finish == "length" or each.offset < self._length]
        elif text:
            shown = self._unshown
        elif not self._prompt:
            return
        piece = RowPiece(text, tuple(shown), tuple(self._prompt), finish, len(self.drawn))
        if shown or finish:
            self._unshown = []
        self._prompt = []
        self._tell(piece)

    def _tell(self, news: RowPiece | BaseException) -> None:
        if self.has_ended:
            return
        if isinstance(news, BaseException) or news.finish:
            self.has_ended = True
        try:
            self._listener(news)
        except Exception:  # who listened is gone
            self.has_ended = True


def scored(
    model: ChatModel, logits: mx.array, tokens: Sequence[int], count: int, offset: int = 0
) -> list[ScoredToken]:
    """The tokens scored by the logits in whose place each stands, [tokens, vocabulary]."""
    if not tokens:
        return []
    logits = logits.astype(mx.float32)
    scores = logits - log_sum_exp(logits)[:, None]
    places = mx.array(list(tokens))[:, None]
    if count == 1:
        places = mx.concatenate([places, mx.argmax(scores, axis=-1)[:, None]], axis=-1)
    elif count:
        best = mx.argpartition(-scores, kth=count - 1, axis=-1)[:, :count]
        places = mx.concatenate([places, best], axis=-1)
    values = np.array(mx.take_along_axis(scores, places, axis=-1))
    found = []
    for ids, score in zip(np.array(places).tolist(), values.tolist(), strict=True):
        ranked = sorted(zip(score[1:], ids[1:], strict=True), reverse=True)
        likeliest = tuple((model.bytes_of(other), value) for value, other in ranked)
        found.append(ScoredToken(model.bytes_of(ids[0]), score[0], likeliest, offset))
    return found
