"""A step's gradients, computed by this process and its workers, each from a part of the step's rows."""

import math
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from unlearn_mlx.compute.workers import Arrays, WorkerPool
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.records import Computation
from unlearn_mlx.sft.batches import (
    BatchShape,
    ReferenceTopK,
    Row,
    common_shapes,
    make_batch,
    part_sizes,
    shape_of,
)
from unlearn_mlx.sft.checkpointing import checkpointed
from unlearn_mlx.sft.compiled import compiled_gradients
from unlearn_mlx.sft.loss import Weights, loss_gradients

TRAINING = "training"  # what a worker keeps it under
MOST_SHAPES = 8  # of batches: each is compiled for itself

LOSS = "loss"  # its parts, beside the gradients by their names


class Training:
    """What a step needs beside its rows' numbers: the same in every process."""

    def __init__(
        self,
        model: ChatModel,
        adapter: Adapter,
        rows: Sequence[Row],
        references: Sequence[ReferenceTopK | None],
        prefix: Sequence[int],
        weights: Weights,
        computation: Computation | None = None,
    ) -> None:
        self.model, self.adapter = model, adapter
        # Without a plan a step is computed as a whole.
        self.part_rows = computation.part_rows if computation else None
        self.checkpointing = computation is not None and computation.checkpointing
        self.computation = computation
        self.rows, self.references, self.prefix, self.weights = rows, references, prefix, weights
        self._gradients = loss_gradients(model.model, weights)
        self._shapes: list[BatchShape] = []

    def compile_for(self, batches: Iterable[Sequence[int]]) -> None:
        """From now on compute gradients by compiled steps, of a few shapes that all ``batches`` fit."""
        parts = (part for chosen in batches for part in self.parts_of(chosen))
        shapes = (shape_of([self.rows[i] for i in part], self.prefix) for part in parts)
        self._shapes = common_shapes(shapes, MOST_SHAPES)
        self._gradients = compiled_gradients(self.model.model, self._gradients)

    def gradients(self, chosen: Sequence[int], sizes: Sequence[int]) -> tuple[mx.array, Any]:
        """The loss's parts, [PARTS], and the tree of gradients, of a step's rows or some of them."""
        rows = [self.rows[i] for i in chosen]
        least = shape_of(rows, self.prefix)
        fitting = (shape for shape in self._shapes if all(map(operator.ge, shape, least)))
        shape = next(fitting, least)
        batch = make_batch(rows, [self.references[i] for i in chosen], self.prefix, sizes, shape)
        with checkpointed(self.model.model) if self.checkpointing else nullcontext():
            return self._gradients(batch)

    def parts_of(self, chosen: Sequence[int]) -> list[Sequence[int]]:
        """The parts of a step that are computed one after the other."""
        count = math.ceil(len(chosen) / self.part_rows) if self.part_rows else 1
        return [chosen[first::count] for first in range(count)]


def shared_training(training: Training, workers: WorkerPool) -> AbstractContextManager[None]:
    """As long as it lasts, the workers train too; their models are as they were afterwards."""
    return workers.keeping(
        TRAINING,
        _attached_training,
        training.adapter.shape,
        training.rows,
        training.references,
        training.prefix,
        training.weights,
        training.computation,
    )


def step_gradients(
    training: Training,
    chosen: Sequence[int],
    workers: WorkerPool,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> tuple[mx.array, Any]:
    """The loss's parts, [PARTS], and the tree of gradients of a step, by all processes together.

    A step is cut into parts of the run's ``part_rows``, whose gradients are added in their order, whoever
    computes which: the sum is the same, to the bit, with any number of workers. Each target counts as much
    as it would in one batch.

    Raises:
        Cancelled: before it, or between two parts, once ``is_cancelled`` returns True.
    """
    if is_cancelled():
        raise Cancelled("training")
    sizes = part_sizes(training.rows[i] for i in chosen)
    parts = training.parts_of(chosen)
    if not workers.count:
        return _sum_of_parts(training, parts, sizes, is_cancelled)
    values = _on_the_host(training.adapter.weights())
    shapes = {LOSS: (len(sizes),), **{name: value.shape for name, value in values.items()}}
    sums = workers.sum(_part_gradients, training, parts, (sizes, values), shapes, is_cancelled, TRAINING)
    # In the order of one process's tree, in which the squares of their norm are added up.
    names = [name for name, _ in tree_flatten(training.model.model.trainable_parameters())]
    return mx.array(sums[LOSS]), tree_unflatten([(name, mx.array(sums[name])) for name in names])


def _sum_of_parts(
    training: Training, parts: Sequence[Sequence[int]], sizes: Sequence[int], is_cancelled: Callable[[], bool]
) -> tuple[mx.array, Any]:
    """The same by this process alone, where no array has to leave the device."""
    loss, sums = training.gradients(parts[0], sizes)
    for chosen in parts[1:]:
        # One part's activations at a time.
        mx.eval(loss, sums)
        if is_cancelled():
            raise Cancelled("training")
        more, gradients = training.gradients(chosen, sizes)
        loss, sums = loss + more, tree_map(operator.add, sums, gradients)
    return loss, sums


@contextmanager
def _attached_training(
    model: ChatModel,
    shape: LoraShape,
    rows: Sequence[Row],
    references: Sequence[ReferenceTopK | None],
    prefix: Sequence[int],
    weights: Weights,
    computation: Computation | None,
) -> Iterator[Training]:
    adapter = Adapter(model.model, shape)
    try:
        yield Training(model, adapter, rows, references, prefix, weights, computation)
    finally:
        adapter.detach()


def _part_gradients(
    training: Training, parts: Sequence[Sequence[int]], sizes: Sequence[int], values: Arrays
) -> Generator[Arrays, None, None]:
    training.adapter.set_weights({name: mx.array(value) for name, value in values.items()})
    for chosen in parts:
        losses, gradients = training.gradients(chosen, sizes)
        yield _on_the_host({LOSS: losses, **dict(tree_flatten(gradients))})


def _on_the_host(arrays: dict[str, mx.array]) -> Arrays:
    floats = {name: array.astype(mx.float32) for name, array in arrays.items()}
    mx.eval(floats)
    return {name: np.array(array) for name, array in floats.items()}
