"""Rows that are decoded together: their prompts, their caches, and one more token for each at a time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.prefix_copies import copies_prefix
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.sampling import draw_token, draw_tokens
from unlearn_mlx.inference.shared_prefix import common_prefix, rows_behind, shared_prefix_caches
from unlearn_mlx.seeding import random_source

if TYPE_CHECKING:
    from unlearn_mlx.inference.generation import Request

SENTENCE_ENDS = ".!?"


class Batch:
    """Rows that are decoded together: which request each is, its cache and its last token."""

    def __init__(self, model: ChatModel, requests: "Sequence[Request]", seed: int) -> None:
        self.model = model
        self.requests = requests
        self.rows: list[int] = []  # request indices; finished ones too until they are dropped
        self.live: list[bool] = []
        self.drawn: list[list[int]] = []  # tokens of each row
        self.cache: list[Any] = []
        self.draws_on_device = current_device().is_gpu
        self.ahead: mx.array | None = None  # [rows]: tokens that a GPU has drawn and nobody has read
        self.sources = [random_source(seed, request.key) for request in requests]
        self.stop_tokens = [model.tokens_with(request.stop_at) for request in requests]
        self.sentence_ends = model.tokens_with(SENTENCE_ENDS)
        # One row alone keeps mlx-lm's plain cache, whose attention has a kernel of its own on a GPU.
        self.is_single = len(requests) == 1
        prefix = common_prefix([request.tokens for request in requests])
        shares = model.sees_prefixes and not self.is_single
        self.prefix_length = len(prefix) if shares else 0
        self.prefix = shared_prefix_caches(model.model, mx.array(prefix[: self.prefix_length]))
        self.copies_prefix = self.prefix is not None and copies_prefix(model)

    @property
    def live_count(self) -> int:
        """How many rows are not finished."""
        return sum(self.live)

    def start(self, chosen: Sequence[int]) -> Iterator[tuple[int, int | None]]:
        """Compute the prompts of further requests and draw their first tokens."""
        logits, cache = self._together(chosen)
        first = len(self.rows)
        for old, new in zip(self.cache, cache, strict=False):
            old.extend(new)
        self.cache = self.cache or cache
        self.rows += chosen
        self.live += [True] * len(chosen)
        self.drawn += [[] for _ in chosen]
        if self.draws_on_device:
            tokens = self._drawn_on_device(logits, chosen)
            self.ahead = tokens if self.ahead is None else mx.concatenate([self.ahead, tokens])
        else:
            yield from self._draw(logits, range(first, len(self.rows)))

    def _together(self, chosen: Sequence[int]) -> tuple[mx.array, list[Any]]:
        """Prompts in one batch: their last tokens' logits, [rows, vocabulary], and one cache a layer.

        Several samples of one prompt are computed as one row.
        """
        prompts = [self.requests[index].tokens for index in chosen]
        first: dict[tuple[int, ...], int] = {}
        for prompt, index in zip(prompts, chosen, strict=True):
            first.setdefault(prompt, index)
        if len(first) == len(chosen):
            return self._prompts(chosen)
        logits, cache = self._prompts(list(first.values()))
        places = {prompt: place for place, prompt in enumerate(first)}
        rows = mx.array([places[prompt] for prompt in prompts])
        for entry in cache:
            entry.filter(rows)
        return logits[rows], cache

    def _prompts(self, chosen: Sequence[int]) -> tuple[mx.array, list[Any]]:
        """The same for prompts that differ."""
        prompts = [list(self.requests[index].tokens[self.prefix_length :]) for index in chosen]
        if self.prefix:
            cache = rows_behind(self.prefix, len(chosen), self.copies_prefix)
        else:
            cache = self._in_one([self.model.new_cache() for _ in chosen])
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            for entry in cache:
                entry.prepare(lengths=lengths, right_padding=padding)
        tokens = mx.array([prompt + [0] * pad for prompt, pad in zip(prompts, padding, strict=True)])
        ends = mx.array([length - 1 for length in lengths])
        logits = self.model.logits_at(tokens, mx.arange(len(chosen)), ends, cache)
        mx.eval(logits)
        if max(padding):
            for entry in cache:
                entry.finalize()
        return logits, cache

    def step(self) -> Iterator[tuple[int, int | None]]:
        """One more token for each live row."""
        positions = range(len(self.rows))
        if not self.draws_on_device:
            last = mx.array([drawn[-1] for drawn in self.drawn])
            yield from self._draw(self._logits_after(last), positions)
            return
        tokens, self.ahead = self.ahead, None
        assert tokens is not None
        if self._goes_on():
            self.ahead = self._drawn_on_device(self._logits_after(tokens), self.rows)
        # The only place where the host waits for a GPU.
        yield from self._take(np.array(tokens).tolist(), positions)

    def _goes_on(self) -> bool:
        """Whether a row may need a token behind the one that was drawn and not read."""
        return any(
            live and len(drawn) + 1 < self.requests[index].max_tokens
            for index, live, drawn in zip(self.rows, self.live, self.drawn, strict=True)
        )

    def _logits_after(self, tokens: mx.array) -> mx.array:
        """Logits behind one more token of each row, [rows, vocabulary]."""
        rows = mx.arange(len(self.rows))
        return self.model.logits_at(tokens[:, None], rows, mx.zeros_like(rows), self.cache)

    def drop_finished(self) -> None:
        """Take the finished rows out of the cache."""
        keep = [position for position, live in enumerate(self.live) if live]
        if len(keep) == len(self.rows):
            return
        if keep:
            kept = mx.array(keep)
            for entry in self.cache:
                entry.filter(kept)
            mx.async_eval([entry.state for entry in self.cache])
            self.ahead = None if self.ahead is None else self.ahead[kept]
        else:
            self.cache, self.ahead = [], None
        for name in ("rows", "live", "drawn"):
            values = getattr(self, name)
            setattr(self, name, [values[position] for position in keep])

    def _draw(self, logits: mx.array, positions: range) -> Iterator[tuple[int, int | None]]:
        """Draw a token for each of these rows on the host."""
        scores = np.array(logits.astype(mx.float32), copy=False)
        tokens = []
        for row_scores, position in zip(scores, positions, strict=True):
            index = self.rows[position]
            request = self.requests[index]
            # A finished row goes on with its neighbours until it is dropped.
            tokens.append(
                draw_token(row_scores, request.temperature, request.min_p, self.sources[index])
                if self.live[position]
                else 0
            )
        yield from self._take(tokens, positions)

    def _drawn_on_device(self, logits: mx.array, chosen: Sequence[int]) -> mx.array:
        """A token for each of these requests, [rows], queued on the device."""
        requests = [self.requests[index] for index in chosen]
        tokens = draw_tokens(
            logits,
            [request.temperature for request in requests],
            [request.min_p for request in requests],
            [self.sources[index] for index in chosen],
        )
        mx.async_eval(tokens)
        return tokens

    def _take(self, tokens: Sequence[int], positions: range) -> Iterator[tuple[int, int | None]]:
        """Hand out a drawn token of each live row, and see which rows end with it."""
        for token, position in zip(tokens, positions, strict=True):
            if not self.live[position]:
                continue
            index = self.rows[position]
            self.drawn[position].append(token)
            ends_message = token in self.model.stop_tokens
            if not ends_message:
                yield index, token
            enough = 0 < self.requests[index].sentence_from <= len(self.drawn[position])
            ends_sentence = enough and self.sentence_ends[token]
            if ends_message or ends_sentence or self.stop_tokens[index][token]:
                self.live[position] = False
                yield index, None
            elif len(self.drawn[position]) >= self.requests[index].max_tokens:
                self.live[position] = False

    def _in_one(self, caches: Sequence[list[Any]]) -> list[Any]:
        """One cache a layer for the rows of several."""
        if self.is_single:
            return caches[0]
        return [entries[0].merge(entries) for entries in zip(*caches, strict=True)]
