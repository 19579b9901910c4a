"""Many answers at once.

What all prompts start with is computed once and kept once for all of them. Each request
draws its randomness from its own key, so its answer does not depend on when its turn comes.
Tokens are drawn on the host: there the likely ones are found without sorting or exponentiating
the whole vocabulary, which costs mlx-lm's BatchGenerator more than the model itself on a CPU.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import LRUPromptCache, trim_prompt_cache

from unlearn_mlx.compute.batch_size import BATCH_SIZES, decode_batch_size
from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.adapters import (
    LoraLayers,
    lora_layers,
    set_row_strengths,
    with_lora_layers,
)
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.shared_prefix import GrowingRows, common_prefix, shared_prefix_caches
from unlearn_mlx.seeding import random_source

SHARED_FROM = 12  # requests; fewer are soon answered by one process


@dataclass(frozen=True)
class Request:
    """One answer to be generated. ``key`` names it and seeds its sampling."""

    key: str
    tokens: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    min_p: float = 0.05  # tokens less likely than this share of the likeliest are never drawn
    stop_at: str = ""  # generation ends with the first token that contains one of these characters
    adapter_strength: float | None = None  # of this row; None leaves the adapter as it is
    weights: Hashable = None  # names what computes this row, where a prompt cache is given


@dataclass(frozen=True)
class Completion:
    """The answer to a request. ``finished`` is False where the length limit cut it off."""

    key: str
    text: str
    token_count: int
    finished: bool


def generate(
    model: ChatModel,
    requests: Sequence[Request],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    workers: WorkerPool | None = None,
) -> list[Completion]:
    """Answer all requests, in their order; ``workers`` answer some of them.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    with_strengths = any(request.adapter_strength is not None for request in requests)
    if workers is None or not workers.count or with_strengths or len(requests) < SHARED_FROM:
        return _answer(model, requests, seed, is_cancelled)
    layers = lora_layers(model.model)
    # Each answer has its own seed, so it is the same in any part.
    completions = workers.map(
        answer_here,
        model,
        _longest_first(requests),
        lambda part: ([requests[i] for i in part], seed, layers),
        is_cancelled,
        here=(is_cancelled,),
    )
    return [completions[i] for i in range(len(requests))]


def answer_groups(
    model: ChatModel,
    groups: Sequence[Sequence[Request]],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    workers: WorkerPool | None = None,
) -> list[list[Completion]]:
    """Answer groups of requests, each in one process: what is said does not depend on how many there are.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    layers = lora_layers(model.model)
    first, *others = [(group, seed, layers) for group in groups]
    parts: list[tuple[Any, ...]] = [(*first, is_cancelled), *others]
    if workers is None:
        return [answer_here(model, *part) for part in parts]
    return workers.run(answer_here, model, parts, is_cancelled)


def answer_here(
    model: ChatModel,
    requests: Sequence[Request],
    seed: int,
    layers: LoraLayers,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[Completion]:
    """Answer all requests in this process, with these layers adapted."""
    with with_lora_layers(model.model, layers):
        return _answer(model, requests, seed, is_cancelled)


def _answer(
    model: ChatModel, requests: Sequence[Request], seed: int, is_cancelled: Callable[[], bool]
) -> list[Completion]:
    tokens: list[list[int]] = [[] for _ in requests]
    finished = [False] * len(requests)
    for index, token in decode(model, requests, seed, is_cancelled):
        if token is None:
            finished[index] = True
        else:
            tokens[index].append(token)
    return [
        Completion(request.key, model.text_of(ids), len(ids), done)
        for request, ids, done in zip(requests, tokens, finished, strict=True)
    ]


def decode(
    model: ChatModel,
    requests: Sequence[Request],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    prompt_cache: LRUPromptCache | None = None,
) -> Iterator[tuple[int, int | None]]:
    """Yield (index of the request, token) as tokens come; (index, None) where an answer ends itself.

    With a ``prompt_cache``, what an earlier call computed of a request's tokens by the same weights is not
    computed again: the next turn of a conversation costs its new message alone.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    if not requests:
        return
    batch = _Batch(model, requests, seed, prompt_cache)
    # The longest first: what is decoded last is then short, and few steps run half empty.
    waiting = deque(_longest_first(requests))
    batch_size = decode_batch_size(model) if len(requests) > BATCH_SIZES[0] else BATCH_SIZES[0]
    try:
        while waiting or batch.live_count:
            if is_cancelled():
                raise Cancelled("generation")
            # Half a batch at a time: prompts computed one by one would each read all the weights.
            if waiting and batch.live_count <= batch_size // 2:
                batch.drop_finished()
                chosen = [waiting.popleft() for _ in range(min(batch_size - batch.live_count, len(waiting)))]
                yield from batch.start(chosen)
            else:
                if batch.live_count <= 0.75 * len(batch.rows):
                    batch.drop_finished()
                yield from batch.step()
    finally:
        batch.remember(range(len(batch.rows)))
        set_row_strengths(model.model, None)


def _longest_first(requests: Sequence[Request]) -> list[int]:
    return sorted(range(len(requests)), key=lambda i: (-requests[i].max_tokens, -len(requests[i].tokens), i))


class _Batch:
    """Rows that are decoded together: which request each is, its cache and its last token."""

    def __init__(
        self, model: ChatModel, requests: Sequence[Request], seed: int, prompt_cache: LRUPromptCache | None
    ) -> None:
        self.model = model
        self.requests = requests
        self.rows: list[int] = []  # request indices; finished ones too until they are dropped
        self.live: list[bool] = []
        self.drawn: list[list[int]] = []  # tokens of each row
        self.cache: list[Any] = []
        self.sources = [random_source(seed, request.key) for request in requests]
        self.stop_tokens = [model.tokens_with(request.stop_at) for request in requests]
        self.has_strengths = any(request.adapter_strength is not None for request in requests)
        prefix = common_prefix([request.tokens for request in requests])
        self.prompt_cache = prompt_cache if model.sees_prefixes else None
        shares = model.sees_prefixes and not self.has_strengths and prompt_cache is None
        self.prefix_length = len(prefix) if shares else 0
        self.prefix = shared_prefix_caches(model.model, mx.array(prefix[: self.prefix_length]))

    @property
    def live_count(self) -> int:
        return sum(self.live)

    def start(self, chosen: Sequence[int]) -> Iterator[tuple[int, int | None]]:
        """Compute the prompts of further requests and draw their first tokens."""
        logits, cache = (
            self._side_by_side(chosen) if self.prompt_cache is not None else self._together(chosen)
        )
        first = len(self.rows)
        for old, new in zip(self.cache, cache, strict=False):
            old.extend(new)
        self.cache = self.cache or cache
        self.rows += chosen
        self.live += [True] * len(chosen)
        self.drawn += [[] for _ in chosen]
        yield from self._draw(logits, range(first, len(self.rows)))

    def _together(self, chosen: Sequence[int]) -> tuple[mx.array, list[Any]]:
        """Prompts in one batch: their last tokens' logits, [rows, vocabulary], and one cache a layer."""
        prompts = [list(self.requests[index].tokens[self.prefix_length :]) for index in chosen]
        if self.prefix:
            cache: list[Any] = [GrowingRows(entry.segments, len(chosen)) for entry in self.prefix]
        else:
            cache = _merged([self.model.new_cache() for _ in chosen])
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            for entry in cache:
                entry.prepare(lengths=lengths, right_padding=padding)
        self._use_strengths(chosen)
        tokens = mx.array([prompt + [0] * pad for prompt, pad in zip(prompts, padding, strict=True)])
        ends = mx.array([length - 1 for length in lengths])
        logits = self.model.logits_at(tokens, mx.arange(len(chosen)), ends, cache)
        mx.eval(logits)
        if max(padding):
            for entry in cache:
                entry.finalize()
        return logits, cache

    def _side_by_side(self, chosen: Sequence[int]) -> tuple[mx.array, list[Any]]:
        """The same, each prompt from where the cache knows it, in a stream of its own: a CPU has several."""
        found = []
        for index, stream in zip(chosen, _streams(len(chosen)), strict=True):
            cache, rest = self._remembered(index)
            self._use_strengths([index])
            with mx.stream(stream):
                last = mx.array([len(rest) - 1])
                logits = self.model.logits_at(mx.array([rest]), mx.array([0]), last, cache)
            found.append((logits, cache))
        # mlx queues about 1,000 operations, in the order asked for: each stream gets a layer's in turn.
        for entries in zip(*(cache for _, cache in found), strict=True):
            mx.async_eval([entry.state for entry in entries])
        mx.eval([logits for logits, _ in found])
        return mx.concatenate([logits for logits, _ in found]), _merged([cache for _, cache in found])

    def step(self) -> Iterator[tuple[int, int | None]]:
        """Draw one more token for each live row."""
        self._use_strengths(self.rows)
        tokens = mx.array([drawn[-1] for drawn in self.drawn])[:, None]
        rows = mx.arange(len(self.rows))
        logits = self.model.logits_at(tokens, rows, mx.zeros_like(rows), self.cache)
        yield from self._draw(logits, range(len(self.rows)))

    def drop_finished(self) -> None:
        """Take the finished rows out of the cache."""
        keep = [position for position, live in enumerate(self.live) if live]
        if len(keep) == len(self.rows):
            return
        self.remember(position for position, live in enumerate(self.live) if not live)
        if keep:
            kept = mx.array(keep)
            for entry in self.cache:
                entry.filter(kept)
            mx.eval([entry.state for entry in self.cache])
        else:
            self.cache = []
        for name in ("rows", "live", "drawn"):
            values = getattr(self, name)
            setattr(self, name, [values[position] for position in keep])

    def _draw(self, logits: mx.array, positions: range) -> Iterator[tuple[int, int | None]]:
        scores = np.array(logits.astype(mx.float32), copy=False)
        for row_scores, position in zip(scores, positions, strict=True):
            if not self.live[position]:
                continue
            index = self.rows[position]
            request = self.requests[index]
            token = draw_token(row_scores, request.temperature, request.min_p, self.sources[index])
            self.drawn[position].append(token)
            ends_message = token in self.model.stop_tokens
            if not ends_message:
                yield index, token
            if ends_message or self.stop_tokens[index][token]:
                self.live[position] = False
                yield index, None
            elif len(self.drawn[position]) >= request.max_tokens:
                self.live[position] = False

    def remember(self, positions: Iterable[int]) -> None:
        """Put what was computed of these rows into the prompt cache: all tokens but the last drawn."""
        if self.prompt_cache is None:
            return
        for position in positions:
            request = self.requests[self.rows[position]]
            tokens = [*request.tokens, *self.drawn[position][:-1]]
            cache = [entry.extract(position) for entry in self.cache]
            # A finished row went on with its neighbours.
            trim_prompt_cache(cache, cache[0].size() - len(tokens))
            mx.eval([entry.state for entry in cache])
            self.prompt_cache.insert_cache(request.weights, tokens, cache)

    def _remembered(self, index: int) -> tuple[list[Any], list[int]]:
        """What the prompt cache has of a request's tokens, and its other tokens, one at least."""
        assert self.prompt_cache is not None
        tokens = list(self.requests[index].tokens)
        # The last token is computed in any case: what follows is drawn from its logits.
        cache, rest = self.prompt_cache.fetch_nearest_cache(self.requests[index].weights, tokens[:-1])
        return cache or self.model.new_cache(), [*rest, tokens[-1]]

    def _use_strengths(self, indices: Sequence[int]) -> None:
        if self.has_strengths:
            set_row_strengths(self.model.model, [self.requests[i].adapter_strength for i in indices])


def draw_token(scores: np.ndarray, temperature: float, min_p: float, source: np.random.Generator) -> int:
    """Draw from softmax(scores / temperature) among tokens of at least ``min_p`` times the top probability.

    min-p sampling as Nguyen et al. 2024 define it; ``scores`` are logits, [vocabulary].
    """
    if temperature == 0:
        return int(np.argmax(scores))
    best = scores.max()
    likely = np.flatnonzero(scores >= best + np.log(max(min_p, 1e-6)))
    weights = np.exp((scores[likely].astype(np.float64) - best) / temperature)
    cumulative = np.cumsum(weights)
    return int(likely[np.searchsorted(cumulative, source.random() * cumulative[-1], side="right")])


def _merged(caches: Sequence[Sequence[Any]]) -> list[Any]:
    """One cache a layer for the rows of several."""
    return [entries[0].merge(entries) for entries in zip(*caches, strict=True)]


_of_thread = threading.local()


def _streams(count: int) -> list[mx.Stream]:
    """Streams that this thread's arrays can be computed in at once; its own is the first."""
    known: list[mx.Stream] = _of_thread.__dict__.setdefault("streams", [])
    device = mx.default_device()
    known += [mx.new_stream(device) for _ in range(count - 1 - len(known))]
    return [mx.default_stream(device), *known][:count]
