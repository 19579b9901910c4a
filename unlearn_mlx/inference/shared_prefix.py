"""One prefix for many rows of a batch, computed once: in generation, in scoring and in training.

A guardrail with its examples stands before every guarded question, and a chat template's system message
before every row. Its keys and values are computed for one row and seen by all, and gradients flow through
them, so the results equal those of full rows to float accuracy. Queries of all rows meet a shared prefix
in one product each for keys and values, as in Hydragen (Juravsky et al. 2024): copied into each row's
cache instead, it would be read anew for every row and token. Prefixes of one length can stand behind it,
each seen by rows of its own, such as the choices of a question.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, create_attention_mask

from unlearn_mlx.compute.cpu_math import softmax

Segment = tuple[mx.array, mx.array]  # keys and values, [prefixes, heads, length, width]


class SharedPrefix:
    """A layer's cache: segments that rows share, before each row's own keys and values.

    A segment of several prefixes has each seen by as many following rows.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.length = sum(keys.shape[2] for keys, _ in segments)

    @property
    def offset(self) -> Any:
        """The position of the next token: a number, or [rows]."""
        return self.length

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The row's own keys and values; the shared ones are met in ``attention``."""
        return keys, values

    def make_mask(self, length: int, **options: Any) -> Any:
        """What of their own tokens the rows see; the shared ones are seen by all."""
        return create_attention_mask(
            length, offset=0, **{"return_array": False, "window_size": None, **options}
        )


class _RecordedPrefix(SharedPrefix):
    """A cache that keeps what a prefix adds to the ones before it."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.recorded = (keys, values)
        return keys, values


class GrowingRows(SharedPrefix):
    """A cache whose rows grow token by token behind the prefix they share."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        super().__init__(segments)
        self.own = _OwnTokens([0] * rows)

    @property
    def offset(self) -> Any:
        """The position of each row's next token, [rows]."""
        return self.length + self.own.offset

    @property
    def state(self) -> Any:
        """The arrays that change from token to token."""
        return self.own.state

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """All keys and values that the rows have of their own."""
        keys_and_values: tuple[mx.array, mx.array] = self.own.update_and_fetch(keys, values)
        return keys_and_values

    def make_mask(self, length: int, **options: Any) -> Any:
        """What each row sees of its own tokens, padding left out."""
        return self.own.make_mask(length, **options)

    def prepare(self, **padding: Any) -> None:
        """Expect prompts of several lengths."""
        self.own.prepare(**padding)

    def finalize(self) -> None:
        """Move the prompts' padding to the left."""
        self.own.finalize()

    def extend(self, other: "GrowingRows") -> None:
        """Add the rows of another cache with the same prefix."""
        self.own.extend(other.own)

    def filter(self, rows: mx.array) -> None:
        """Keep these rows alone."""
        self.own.filter(rows)


class _OwnTokens(BatchKVCache):
    step = 64  # a question and its answer: room is made for so many tokens at a time


def rows_behind(prefix: Sequence[SharedPrefix], rows: int, copied: bool) -> list[Any]:
    """One cache a layer for rows that grow behind a prefix, which they share or have a copy of."""
    if not copied:
        return [GrowingRows(entry.segments, rows) for entry in prefix]
    caches = []
    for entry in prefix:
        cache = _OwnTokens([0] * rows)
        for segment in entry.segments:
            cache.update_and_fetch(*(mx.broadcast_to(part, (rows, *part.shape[1:])) for part in segment))
        caches.append(cache)
    return caches


def shared_prefix_caches(
    model: Any, prefixes: mx.array, before: Sequence[SharedPrefix] | None = None
) -> list[SharedPrefix] | None:
    """One cache a layer that shares ``prefixes``, [length] for all rows or [prefixes, length].

    ``before`` are caches of what stands before them. None where there is nothing to share.
    """
    if prefixes.size == 0:
        return list(before) if before else None
    recorded = [
        _RecordedPrefix(before[number].segments if before else ())
        for number, _ in enumerate(model.model.layers)
    ]
    model.model(prefixes if prefixes.ndim == 2 else prefixes[None], cache=recorded)
    return [SharedPrefix((*entry.segments, entry.recorded)) for entry in recorded]


def sees_shared_prefixes(model: Any) -> bool:
    """Whether a model's layers see the prefixes that their caches share.

    They do where mlx-lm's attention is replaced (patches.py), but for an architecture that has its own.
    """
    tokens = mx.array([[0, 1, 2, 3], [0, 1, 3, 2]])
    try:
        whole = model.model(tokens)[:, 2:]
        behind = model.model(tokens[:, 2:], cache=shared_prefix_caches(model, tokens[0, :2]))
        distance = mx.abs(whole - behind).max() / mx.abs(whole).max()
    except (AttributeError, TypeError, ValueError):  # an architecture built in another way
        return False
    return bool(distance < 0.02)


def attention_that_shares(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """mlx-lm's attention function made to see prefixes, and to do as before where none is shared."""

    def attend(queries: mx.array, keys: mx.array, values: mx.array, cache: Any, **options: Any) -> mx.array:
        if not isinstance(cache, SharedPrefix) or not cache.segments:
            return plain(queries, keys, values, cache=cache, **options)
        return attention(queries, keys, values, cache.segments, **options)

    return attend


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    segments: Sequence[Segment],
    scale: float,
    mask: Any = None,
) -> mx.array:
    """Softmax attention over shared segments and each row's own tokens, [rows, heads, length, width].

    ``mask``, as mlx-lm makes it, is of the rows' own tokens: None, "causal" or booleans.
    """
    rows, heads, length, width = queries.shape
    groups = keys.shape[1]  # of heads that share keys and values (Ainslie et al. 2023)
    asked = (queries * scale).reshape(rows, groups, -1, width)
    own = asked @ keys.swapaxes(-1, -2)
    if isinstance(mask, str):
        mask = mx.arange(length)[:, None] >= mx.arange(length)
    if mask is not None:
        by_head = own.reshape(rows, heads, length, -1)
        own = mx.where(mask, by_head, mx.finfo(own.dtype).min).reshape(own.shape)
    scores = [_met(asked, segment_keys.swapaxes(-1, -2)) for segment_keys, _ in segments]
    weights = softmax(mx.concatenate([*scores, own], axis=-1))
    start = 0
    result = mx.array(0.0, dtype=queries.dtype)
    for segment_keys, segment_values in segments:
        end = start + segment_keys.shape[2]
        result = result + _met(weights[..., start:end], segment_values)
        start = end
    result = result + weights[..., start:] @ values
    return result.reshape(rows, heads, length, -1)


def _met(rows: mx.array, shared: mx.array) -> mx.array:
    """The product of each row, [rows, groups, n, k], with its prefix, [prefixes, groups, k, m]."""
    count, groups, n, k = rows.shape
    prefixes, _, _, m = shared.shape
    if prefixes == count:
        return rows @ shared
    together = rows.reshape(prefixes, -1, groups, n, k).swapaxes(1, 2).reshape(prefixes, groups, -1, k)
    product = (together @ shared).reshape(prefixes, groups, -1, n, m)
    return product.swapaxes(1, 2).reshape(count, groups, n, m)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows start with, short of the whole of any."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    limit = min(map(len, rows)) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return list(first[:length])
