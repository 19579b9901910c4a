"""Opening a model: its weights and tokenizer, and worker processes that have the same ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model

from unlearn_mlx.compute import planner
from unlearn_mlx.compute.batch_size import decode_batch_size
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.group import Ranks
from unlearn_mlx.compute.holders import make_room
from unlearn_mlx.compute.memory import GIGABYTE, bound_cache, free_bytes
from unlearn_mlx.compute.model_shape import shape_of
from unlearn_mlx.compute.worker import WorkerLost
from unlearn_mlx.compute.workers import WorkerPool, worker_count
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.opening import open_folder
from unlearn_mlx.models.registry import ModelSource, resolve_model


def load_model(source: ModelSource) -> ChatModel:
    """Load weights and tokenizer.

    On a CPU the weights become float32: quantized and float16 products run at a hundredth of the
    speed there. On Metal and CUDA they stay as they are.

    Raises:
        EnvironmentCannot: where the files are damaged, of an unknown architecture or of no chat model.
    """
    bound_cache()
    model, tokenizer = _loaded(source, lazy=False)
    mx.eval(model.parameters())
    model.eval()
    return ChatModel(model, tokenizer, source)


def plain_layers(source: ModelSource, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Some layers of a model by name, as its files have them; each is read when it is asked for."""
    model, _ = _loaded(source, lazy=True)
    layers = {name: module for name, module in model.named_modules() if name in names}
    del model
    for name in names:
        yield name, layers.pop(name)


def _loaded(source: ModelSource, lazy: bool) -> tuple[nn.Module, TokenizerWrapper]:
    model, tokenizer, _ = open_folder(source, lazy)
    if not current_device().is_gpu:
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
    return model, tokenizer


def chat_bytes(source: ModelSource) -> int:
    """What a chat with a model takes, once others have made room for it; 0 where its sizes are not known.

    Raises:
        EnvironmentCannot: where there is too little room.
    """
    device = current_device()
    try:
        needed = planner.chat_bytes(shape_of(source.folder), device)
    except UserError:  # its configuration says its sizes in other words
        return 0
    room = make_room(needed)
    if needed > room:
        free = f"{max(0, room) / GIGABYTE:.1f} GB are free"
        raise EnvironmentCannot(
            f"a chat with {source.name} takes {needed / GIGABYTE:.1f} GB and {free}: close other programs, "
            "or wait for the run that is at work"
        )
    return needed


def load_by_name(name: str, decode_batch_size: int | None = None) -> ChatModel:
    """Load a model by its name, as a worker process does: see ``resolve_model`` for the names.

    ``decode_batch_size`` is of its batches of answers, where that is known already.
    """
    model = load_model(resolve_model(name))
    model.decode_batch_size = decode_batch_size
    return model


def load_same(name: str, weights_sha256: str, decode_batch_size: int) -> ChatModel:
    """Load a model by its name, as another rank does, where its weights are rank 0's.

    Raises:
        WorkerLost: where they are others.
    """
    own = resolve_model(name).weights_sha256
    if own != weights_sha256:
        raise WorkerLost(f"its weights of {name} are {own[:12]}, and rank 0's are {weights_sha256[:12]}")
    return load_by_name(name, decode_batch_size)


@contextmanager
def model_workers(
    model: ChatModel,
    count: int | None = None,
    on_lost: Callable[[str], None] = lambda text: None,
    ranks: Ranks | None = None,
) -> Iterator[WorkerPool]:
    """Those who have the same weights and share the work: the other ranks, or worker processes.

    Where there are no ``ranks``, there are ``count`` processes as long as the context lasts; what
    ``worker_count`` says where it is None. ``on_lost`` is told why one of them failed.
    """
    if ranks is not None:
        ranks.load(load_same, (model.source.name, model.source.weights_sha256, decode_batch_size(model)))
        yield ranks
        return
    if count is None:
        weights = sum(array.nbytes for _, array in tree_flatten(model.model.parameters()))
        count = worker_count(weights, free_bytes(), current_device())
    # Measured before the workers begin: beside them it would be another.
    given = (model.source.name, decode_batch_size(model)) if count else ()
    with WorkerPool(load_by_name, given, count, on_lost) as workers:
        yield workers
