"""A step's gradients, computed by this process and its helpers, each from a share of the step's rows."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from unlearn_mlx.compute.workers import in_shares, in_turn
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.sft.batches import ReferenceTopK, Row, make_batch, part_sizes
from unlearn_mlx.sft.loss import Weights, loss_parts

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
        """The loss's parts, [PARTS], and the tree of gradients, of a step's rows or a share of them."""
        batch = make_batch(
            [self.rows[i] for i in chosen], [self.references[i] for i in chosen], self.prefix, sizes
        )
        (_, parts), gradients = self._gradients(self.model.model, batch)
        return mx.stack(parts), gradients


_training: Training | None = None  # a process has one at a time


def begin(training: Training) -> None:
    """Begin a training in this process and in its model's helpers."""
    global _training
    _training = training
    in_turn(
        training.model,
        _begin,
        training.adapter.shape,
        training.rows,
        training.references,
        training.prefix,
        training.weights,
    )


def end(model: ChatModel) -> None:
    """Leave the helpers' models as they were."""
    global _training
    _training = None
    in_turn(model, _end)


def step_gradients(training: Training, chosen: Sequence[int]) -> tuple[mx.array, Any]:
    """The loss's parts, [PARTS], and the tree of gradients of a step, by all processes together."""
    sizes = part_sizes(training.rows[i] for i in chosen)
    model = training.model
    if not model.helpers:
        return training.gradients(chosen, sizes)
    count = len(model.helpers) + 1
    values = {name: np.array(array) for name, array in training.adapter.weights().items()}
    shares = [(chosen[number::count], sizes, values) for number in range(count)]
    results = in_shares(model, _share, [share for share in shares if share[0]])
    parts = mx.array(sum(result[0] for result in results))
    sums = {name: sum(result[1][name] for result in results) for name in results[0][1]}
    return parts, tree_unflatten([(name, mx.array(value)) for name, value in sums.items()])


def _begin(
    model: ChatModel,
    shape: LoraShape,
    rows: Sequence[Row],
    references: Sequence[ReferenceTopK | None],
    prefix: Sequence[int],
    weights: Weights,
) -> None:
    global _training
    _training = Training(model, Adapter(model.model, shape), rows, references, prefix, weights)


def _end(model: ChatModel) -> None:
    global _training
    if _training is not None:
        _training.adapter.detach()
    _training = None


def _share(
    model: ChatModel, chosen: Sequence[int], sizes: Sequence[int], values: Arrays
) -> tuple[Any, Arrays]:
    assert _training is not None
    _training.adapter.set_weights({name: mx.array(value) for name, value in values.items()})
    parts, gradients = _training.gradients(chosen, sizes)
    flat = dict(tree_flatten(gradients))
    mx.eval(parts, flat)
    return np.array(parts), {name: np.array(value) for name, value in flat.items()}
