"""Gradient checkpointing, a layer at a time: activations are computed again instead of being kept.

Between the layers alone they are kept; each layer's own are computed a second time on the way back, which
takes a third more time (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost). mlx-lm's
``grad_checkpoint`` changes a layer's class for the whole process and for good, and loses the gradient through
what a cache shares.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

from unlearn_mlx.inference.shared_prefix import SharedPrefix


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """As long as it lasts, the layers of this mlx-lm model keep nothing for the way back while they train."""
    layers = list(model.model.layers)
    kinds: list[Any] = [type(layer) for layer in layers]
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = _checkpointed(kind)
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


@cache
def _checkpointed(kind: type) -> type:
    """The layer's class, whose instances are computed twice; names of parameters stay what they are."""

    def call(layer: Any, x: mx.array, *given: Any, **named: Any) -> Any:
        if not layer.training:
            return kind.__call__(layer, x, *given, **named)
        return _computed_twice(kind, layer, x, given, named)

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call})


def _computed_twice(
    kind: Any, layer: Any, x: mx.array, given: tuple[Any, ...], named: dict[str, Any]
) -> mx.array:
    every = [*given, *named.values()]
    shared = next((value for value in every if isinstance(value, SharedPrefix)), None)

    # Gradients flow to what is given alone, not to what the function finds around it: so the weights and the
    # shared keys and values are given, and what a prefix adds to them is returned.
    def inner(weights: Any, x: mx.array, segments: Any) -> tuple[mx.array, list[mx.array]]:
        before = layer.trainable_parameters()
        layer.update(weights)
        seen = copy.copy(shared)
        if seen is not None:
            seen.segments = [tuple(segment) for segment in segments]

        def instead(value: Any) -> Any:
            return seen if value is not None and value is shared else value

        rest = {name: instead(value) for name, value in named.items()}
        y = kind.__call__(layer, x, *map(instead, given), **rest)
        layer.update(before)
        return y, list(getattr(seen, "recorded", ()))

    segments = [list(segment) for segment in shared.segments] if shared else []
    y, recorded = mx.checkpoint(inner)(layer.trainable_parameters(), x, segments)
    if recorded:
        assert shared is not None
        shared.__dict__["recorded"] = tuple(recorded)
    result: mx.array = y
    return result
