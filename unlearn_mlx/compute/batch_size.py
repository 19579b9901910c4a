"""How many answers are decoded side by side: measured once for a model on a machine, and kept.

Larger batches read the weights less often and keep more keys and values; where the gain ends depends on
the machine.
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.measured import decoding_seconds, measured_once
from unlearn_mlx.compute.memory import room_of

BATCH_SIZES = (16, 32, 64)
NEAR = 1.1  # times the least time a row takes: a smaller batch that is as near is as good
STEPS = 3  # timed at each size; the fastest counts


def decode_batch_size(model: Any) -> int:
    """The size for a ``ChatModel`` on this machine: measured where it was never, a matter of seconds."""
    if model.decode_batch_size is None:
        model.decode_batch_size = measured_once("batch-sizes", model, BATCH_SIZES, _measured)
    return int(model.decode_batch_size)


def _measured(model: Any) -> int:
    seconds: dict[int, float] = {}
    batches = {}
    for size in BATCH_SIZES:
        cache = [entry.merge([entry] * size) for entry in model.new_cache()]
        batches[size] = (mx.zeros((size, 1), mx.int32), cache)
        decoding_seconds(model, *batches[size])  # makes room and compiles
        arrays = [value for _, value in tree_flatten([entry.state for entry in cache])]
        held = sum(array.nbytes for array in arrays if isinstance(array, mx.array))
        if held > room_of(current_device()) / 4:
            break
    # In turns, so that what else the machine does meets all alike.
    for _ in range(STEPS):
        for size, batch in batches.items():
            seconds[size] = min(seconds.get(size, float("inf")), decoding_seconds(model, *batch))
    least = min(took / size for size, took in seconds.items())
    return min(size for size, took in seconds.items() if took / size <= NEAR * least)
