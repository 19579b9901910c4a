"""One prefix for many rows of a batch, computed once, in training and in scoring.

Chat templates put the same system message before every row: a third of a short row's tokens. Its
keys and values are computed for one row and seen by all, and gradients flow through them, so the
results equal those of full rows to float accuracy. Prefixes of one length can stand behind it, each
seen by rows of its own, such as the choices of a question.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask


class _SharedPrefix:
    """A cache that puts the prefix before each row's own keys and values.

    A prefix, [prefixes, heads, length, width], is that of as many following rows as there are for each.
    """

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self.keys, self.values = keys, values
        self.offset = keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return _joined(self.keys, keys), _joined(self.values, values)

    def make_mask(self, length: int, **options: Any) -> Any:
        return create_attention_mask(
            length, offset=self.offset, **{"return_array": False, "window_size": None, **options}
        )


class _RecordedPrefix:
    """A cache that keeps what a prefix adds to the one before it, if there is one."""

    def __init__(self, before: _SharedPrefix | None) -> None:
        self.before = before
        self.offset = before.offset if before else 0
        self.keys = self.values = mx.zeros((0,))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.before:
            keys, values = self.before.update_and_fetch(keys, values)
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, length: int, **options: Any) -> Any:
        return create_attention_mask(
            length, offset=self.offset, **{"return_array": False, "window_size": None, **options}
        )


def shared_prefix_caches(
    model: Any, prefixes: mx.array, before: Sequence[_SharedPrefix] | None = None
) -> list[_SharedPrefix] | None:
    """One cache a layer that shares ``prefixes``, [length] for all rows or [prefixes, length].

    ``before`` are caches of what stands before them. None where there is nothing to share.
    """
    if prefixes.size == 0:
        return list(before) if before else None
    recorded = [
        _RecordedPrefix(before[number] if before else None) for number, _ in enumerate(model.model.layers)
    ]
    model.model(prefixes if prefixes.ndim == 2 else prefixes[None], cache=recorded)
    return [_SharedPrefix(entry.keys, entry.values) for entry in recorded]


def _joined(prefix: mx.array, own: mx.array) -> mx.array:
    rows = own.shape[0] // prefix.shape[0]
    if prefix.shape[0] == 1:
        shared = mx.broadcast_to(prefix, (rows, *prefix.shape[1:]))
    else:
        shared = mx.repeat(prefix, rows, axis=0)
    return mx.concatenate([shared, own], axis=2)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows start with, short of the whole of any."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    limit = min(map(len, rows)) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return list(first[:length])
