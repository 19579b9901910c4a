"""Opening a model: its weights and tokenizer, and worker processes that have the same ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load

from unlearn_mlx.compute.batch_size import decode_batch_size
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.memory import bound_cache, free_bytes
from unlearn_mlx.compute.workers import WorkerPool, worker_count
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.models.registry import ModelSource, resolve_model


def load_model(source: ModelSource) -> ChatModel:
    """Load weights and tokenizer.

    On a CPU the weights become float32: quantized and float16 products run at a hundredth of the
    speed there. On Metal and CUDA they stay as they are.

    Raises:
        EnvironmentCannot: where the files are damaged or of an unknown architecture.
    """
    bound_cache()
    try:
        loaded: Any = load(str(source.folder))
    except Exception as error:  # mlx-lm and safetensors raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentCannot(f"cannot load {source.folder}: {reason}; fetch the model again") from error
    model, tokenizer = loaded[0], loaded[1]
    if not current_device().is_gpu:
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    model.eval()
    return ChatModel(model, tokenizer, source)


def load_by_name(name: str) -> ChatModel:
    """Load a model by its name, as a worker process does: see ``resolve_model`` for the names."""
    return load_model(resolve_model(name))


@contextmanager
def model_workers(
    model: ChatModel, count: int | None = None, on_lost: Callable[[str], None] = lambda text: None
) -> Iterator[WorkerPool]:
    """Worker processes with the same weights, as long as the context lasts.

    ``count`` is how many there are; what ``worker_count`` says where it is None. ``on_lost`` is told why
    a worker failed.
    """
    if count is None:
        weights = sum(array.nbytes for _, array in tree_flatten(model.model.parameters()))
        count = worker_count(weights, free_bytes(), current_device())
    if count:
        decode_batch_size(model)  # which the workers find measured
    with WorkerPool(load_by_name, (model.source.name,), count, on_lost) as workers:
        yield workers
