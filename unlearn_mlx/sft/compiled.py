"""Training steps that Metal computes compiled: fewer and larger kernels, and a graph is built once a shape.

As mlx-lm's trainer does, but in two functions, so that the gradients of several batches can be added before
an update. A CPU gains nothing: there mlx builds each kernel with the machine's C++ compiler, if it has one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.sft.batches import Batch

LARGEST_GRADIENT = 1.0  # of all together, by their norm
# CUDA's compiler takes minutes for a step's kernels, Metal's takes seconds: an H200 waited 232 seconds for
# those of Llama-3-8B's shape, and a compiled step saved it 0.4.
STEPS_ON_CUDA = 600


def compiles_steps(count: int) -> bool:
    """Whether so many steps are faster compiled on this machine's device."""
    backend = current_device().backend
    return backend == "metal" or (backend == "cuda" and count >= STEPS_ON_CUDA)


def compiled_gradients(
    model: nn.Module, gradients: Callable[[Batch], tuple[mx.array, Any]]
) -> Callable[[Batch], tuple[mx.array, Any]]:
    """``gradients``, traced once for each shape of a batch."""

    # The base's weights are inputs as well: as constants they would be held by every trace.
    @partial(mx.compile, inputs=[model.state])
    def traced(arrays: dict[str, mx.array]) -> tuple[mx.array, Any]:
        return gradients(Batch(**arrays))

    def of(batch: Batch) -> tuple[mx.array, Any]:
        trained = model.trainable_parameters()
        result: tuple[mx.array, Any] = traced(vars(batch))
        model.update(trained)  # a trace leaves its placeholders in the model
        return result

    return of


def optimizer_step(
    model: nn.Module, optimizer: optimizers.Optimizer, compiled: bool = False
) -> Callable[[Any], None]:
    """A function that changes the model by gradients, which it bounds first.

    It has the optimizer's state of now: make it again where that is replaced.
    """

    def updated(parameters: Any, gradients: Any) -> Any:
        gradients, _ = optimizers.clip_grad_norm(gradients, LARGEST_GRADIENT)
        return optimizer.apply_gradients(gradients, parameters)

    if compiled:
        updated = mx.compile(updated, inputs=optimizer.state, outputs=optimizer.state)

    def update(gradients: Any) -> None:
        model.update(updated(model.trainable_parameters(), gradients))

    return update
