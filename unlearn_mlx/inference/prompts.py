"""Prompts of rows: computed in parts, and kept for whatever goes on from there."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache, trim_prompt_cache

from unlearn_mlx.compute.planner import CONVERSATION_BYTES
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.row_adapters import RowAdapters
from unlearn_mlx.inference.rows import Row

CONVERSATIONS_KEPT = 64  # computed prompts and answers, and no more than so many bytes of them


class KeptPrompts:
    """Keys and values of prompts and answers, by what computed them. To lose them costs time alone."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self._caches = LRUPromptCache(CONVERSATIONS_KEPT, CONVERSATION_BYTES)

    def find(self, row: Row) -> None:
        """Give a row a cache with what is known of its tokens, where it has none yet."""
        if row.cache is not None:
            return
        tokens = row.tokens
        if self._model.sees_prefixes and not row.scores_prompt:
            # The last token is computed in any case: what follows is drawn from its logits.
            row.cache, rest = self._caches.fetch_nearest_cache(row.weights, tokens[:-1])
            row.filled = len(tokens) - 1 - len(rest)
        if row.cache is None:
            row.cache, row.filled = self._model.new_cache(), 0
        row.kept = row.filled

    def keep(self, row: Row, own_cache: Callable[[], list[Any]]) -> None:
        """Keep what was computed of a row, if it is to be."""
        if not (self._model.sees_prefixes and row.request.is_kept):
            return
        with suppress(Exception):
            cache = own_cache()
            # A GPU was a token ahead of an answer that has ended.
            trim_prompt_cache(cache, max(0, cache[0].size() - row.size))
            mx.eval([entry.state for entry in cache])
            self._caches.insert_cache(row.weights, row.tokens[: cache[0].size()], cache)


def computed(model: ChatModel, adapters: RowAdapters, parts: Sequence[tuple[Row, int]]) -> list[mx.array]:
    """The next tokens of prompts, so many of each, in a stream of their own each: a CPU has several.

    Returns logits of their last token, [1, vocabulary], or of all where the prompt is scored.
    """
    found = []
    for (row, count), stream in zip(parts, _streams(len(parts)), strict=True):
        adapters.use([row.weights])
        with mx.stream(stream):
            tokens = mx.array([row.tokens[row.filled : row.filled + count]])
            columns = mx.arange(count) if row.scores_prompt else mx.array([count - 1])
            found.append(model.logits_at(tokens, mx.zeros_like(columns), columns, row.cache))
    # mlx queues about 1,000 operations, in the order asked for: each stream gets a layer's in turn.
    for entries in zip(*(row.cache or [] for row, _ in parts), strict=True):
        mx.async_eval([entry.state for entry in entries])
    mx.eval(found)
    return found


_of_thread = threading.local()


def _streams(count: int) -> list[mx.Stream]:
    """Streams that this thread's arrays can be computed in at once; its own is the first."""
    known: list[mx.Stream] = _of_thread.__dict__.setdefault("streams", [])
    device = mx.default_device()
    known += [mx.new_stream(device) for _ in range(count - 1 - len(known))]
    return [mx.default_stream(device), *known][:count]
