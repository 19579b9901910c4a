"""Whether rows that are decoded side by side share their prefix's keys and values, or copy them.

Shared, they are read once for all rows, by products of our own (inference/shared_prefix.py); copied into each
row's cache, mlx's one kernel for attention reads them, once a row. A CPU has no such kernel: there they are
shared. Which is faster on a GPU depends on its bandwidth and on what starting a kernel costs: it is measured.
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from unlearn_mlx.compute.batch_size import decode_batch_size
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.measured import decoding_seconds, measured_once
from unlearn_mlx.compute.memory import room_of

PREFIX = 178  # tokens, as the guardrail has
STEPS = 5  # timed of each way; the fastest counts
COPIES_SHARE = 32  # copies may take one part in so many of what a device has room for: no plan counts them


def copies_prefix(model: Any) -> bool:
    """Whether a ``ChatModel``'s rows copy their prefix on this machine."""
    if not current_device().is_gpu:
        return False
    if model.copies_prefix is None:
        model.copies_prefix = measured_once("prefix-copies", model, (False, True), _measured)
    return bool(model.copies_prefix)


def _measured(model: Any) -> bool:
    rows = decode_batch_size(model)
    tokens = mx.zeros((rows, 1), mx.int32)
    caches = {
        copied: model.caches_behind(mx.zeros((PREFIX,), mx.int32), rows, copied) for copied in (False, True)
    }
    arrays = [value for _, value in tree_flatten([entry.state for entry in caches[True]])]
    held = sum(array.nbytes for array in arrays if isinstance(array, mx.array))
    if held > room_of(current_device()) / COPIES_SHARE:
        return False
    seconds = {False: float("inf"), True: float("inf")}
    for turn in range(STEPS + 1):
        for copied, cache in caches.items():
            took = decoding_seconds(model, tokens, cache)
            if turn:  # the first makes room and compiles
                seconds[copied] = min(seconds[copied], took)
    return seconds[True] < seconds[False]
