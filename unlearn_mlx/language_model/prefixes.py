"""One prefix for all rows of a batch, computed once, in training and in scoring.

Chat templates put the same system message before every row: a third of a short row's tokens. Its
keys and values are computed for one row and seen by all, and gradients flow through them, so the
results equal those of full rows to float accuracy.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask


class _RecordedPrefix:
    """A cache that keeps the keys and values of the prefix, [1, heads, length, width]."""

    offset = 0

    def __init__(self) -> None:
        self.keys = self.values = mx.zeros((0,))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, length: int, **options: Any) -> Any:
        return create_attention_mask(
            length, offset=0, **{"return_array": False, "window_size": None, **options}
        )


class _SharedPrefix:
    """A cache that puts the recorded prefix before each row's own keys and values."""

    def __init__(self, recorded: _RecordedPrefix) -> None:
        self.recorded = recorded
        self.offset = recorded.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        rows = keys.shape[0]

        def joined(prefix: mx.array, own: mx.array) -> mx.array:
            return mx.concatenate([mx.broadcast_to(prefix, (rows, *prefix.shape[1:])), own], axis=2)

        return joined(self.recorded.keys, keys), joined(self.recorded.values, values)

    def make_mask(self, length: int, **options: Any) -> Any:
        return create_attention_mask(
            length, offset=self.offset, **{"return_array": False, "window_size": None, **options}
        )


def shared_prefix_caches(model: Any, prefix: mx.array) -> list[_SharedPrefix] | None:
    """One cache a layer that shares ``prefix``, [length]; None for an empty one."""
    if prefix.size == 0:
        return None
    recorded = [_RecordedPrefix() for _ in model.model.layers]
    model.model(prefix[None], cache=recorded)
    return [_SharedPrefix(entry) for entry in recorded]


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows start with, short of the whole of any."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    limit = min(map(len, rows)) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return list(first[:length])
