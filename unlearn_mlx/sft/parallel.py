"""A step's gradients, computed by this process and its workers, each from a part of the step's rows."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.sft.batches import ReferenceTopK, Row, make_batch, part_sizes
from unlearn_mlx.sft.loss import Weights, loss_parts

TRAINING = "training"  # what a worker keeps it under

Arrays = dict[str, np.ndarray]


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
    ) -> None:
        self.model, self.adapter = model, adapter
        self.rows, self.references, self.prefix, self.weights = rows, references, prefix, weights
        self._gradients = nn.value_and_grad(
            model.model, lambda module, batch: loss_parts(module, batch, weights)
        )

    def gradients(self, chosen: Sequence[int], sizes: Sequence[int]) -> tuple[mx.array, Any]:
        """The loss's parts, [PARTS], and the tree of gradients, of a step's rows or some of them."""
        batch = make_batch(
            [self.rows[i] for i in chosen], [self.references[i] for i in chosen], self.prefix, sizes
        )
        (_, parts), gradients = self._gradients(self.model.model, batch)
        return mx.stack(parts), gradients


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
    )


def step_gradients(training: Training, chosen: Sequence[int], workers: WorkerPool) -> tuple[mx.array, Any]:
    """The loss's parts, [PARTS], and the tree of gradients of a step, by all processes together."""
    sizes = part_sizes(training.rows[i] for i in chosen)
    if not workers.count:
        return training.gradients(chosen, sizes)
    count = workers.count + 1
    values = {name: np.array(array) for name, array in training.adapter.weights().items()}
    parts = [(chosen[number::count], sizes, values) for number in range(count)]
    results = workers.run(_part_gradients, training, [part for part in parts if part[0]], name=TRAINING)
    loss = mx.array(sum(result[0] for result in results))
    sums = {name: sum(result[1][name] for result in results) for name in results[0][1]}
    return loss, tree_unflatten([(name, mx.array(value)) for name, value in sums.items()])


@contextmanager
def _attached_training(
    model: ChatModel,
    shape: LoraShape,
    rows: Sequence[Row],
    references: Sequence[ReferenceTopK | None],
    prefix: Sequence[int],
    weights: Weights,
) -> Iterator[Training]:
    adapter = Adapter(model.model, shape)
    try:
        yield Training(model, adapter, rows, references, prefix, weights)
    finally:
        adapter.detach()


def _part_gradients(
    training: Training, chosen: Sequence[int], sizes: Sequence[int], values: Arrays
) -> tuple[Any, Arrays]:
    training.adapter.set_weights({name: mx.array(value) for name, value in values.items()})
    parts, gradients = training.gradients(chosen, sizes)
    flat = dict(tree_flatten(gradients))
    mx.eval(parts, flat)
    return np.array(parts), {name: np.array(value) for name, value in flat.items()}
