"""How many answers are decoded side by side: measured once for a model on a machine, and kept.

Larger batches read the weights less often and keep more keys and values; where the gain ends depends on
the machine. The measurement is kept in the cache, since a batch's size shows in the last digit of its
products: a run that goes on is to draw the words it would have drawn.
"""

import time
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.memory import free_bytes
from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import read_json, write_json

BATCH_SIZES = (16, 32, 64)
NEAR = 1.1  # times the least time a row takes: a smaller batch that is as near is as good
STEPS = 3  # timed at each size; the fastest counts


def decode_batch_size(model: Any) -> int:
    """The size for a ``ChatModel`` on this machine: measured where it was never, a matter of seconds."""
    if model.decode_batch_size is None:
        path = cache_folder() / "batch-sizes.json"
        device = current_device()
        key = f"{model.source.weights_sha256} on {device.backend} {device.name} {device.cores}"
        try:
            known = read_json(path) if path.exists() else {}
        except UserError:  # damaged, and soon made again
            known = {}
        if known.get(key) not in BATCH_SIZES:
            known[key] = _measured(model)
            write_json(path, known)
        model.decode_batch_size = known[key]
    return int(model.decode_batch_size)


def _measured(model: Any) -> int:
    seconds: dict[int, float] = {}
    batches = {}
    for size in BATCH_SIZES:
        cache = [entry.merge([entry] * size) for entry in model.new_cache()]
        batches[size] = (mx.zeros((size, 1), mx.int32), mx.arange(size), cache)
        _step(model, *batches[size])  # makes room and compiles
        arrays = [value for _, value in tree_flatten([entry.state for entry in cache])]
        if sum(array.nbytes for array in arrays if isinstance(array, mx.array)) > free_bytes() / 4:
            break
    # In turns, so that what else the machine does meets all alike.
    for _ in range(STEPS):
        for size, batch in batches.items():
            seconds[size] = min(seconds.get(size, float("inf")), _step(model, *batch))
    least = min(took / size for size, took in seconds.items())
    return min(size for size, took in seconds.items() if took / size <= NEAR * least)


def _step(model: Any, tokens: mx.array, rows: mx.array, cache: Any) -> float:
    began = time.perf_counter()
    mx.eval(model.logits_at(tokens, rows, mx.zeros_like(rows), cache))
    return time.perf_counter() - began
