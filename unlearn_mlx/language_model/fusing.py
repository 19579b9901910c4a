"""An adapter made part of the weights, at full precision or rounded to few bits.

Rounding can undo unlearning: an update smaller than half a step of the grid vanishes (Zhang et al. 2024,
Catastrophic Failure of LLM Unlearning via Quantization).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from unlearn_mlx.language_model.adapters import Adapter


@contextmanager
def fused(adapter: Adapter, bits: int | None, group_size: int) -> Iterator[None]:
    """The model with W + scale * B A in the place of its adapted layers, for as long as it lasts.

    ``bits`` rounds the sums as affine quantization in groups of ``group_size`` does; None leaves them as
    they are. A model that computes in floats gets the rounded values as floats: the same numbers.
    """
    layers = [(name, _fused_layer(layer, bits, group_size)) for name, layer in adapter.layers()]
    adapter.model.update_modules(tree_unflatten(layers))
    mx.eval([layer.parameters() for _, layer in layers])
    try:
        yield
    finally:
        adapter.model.update_modules(tree_unflatten(adapter.layers()))


def _fused_layer(layer: Any, bits: int | None, group_size: int) -> nn.Module:
    plain: nn.Linear = layer.fuse(dequantize=True)
    if bits is None:
        return plain
    if isinstance(layer.linear, nn.QuantizedLinear):
        return nn.QuantizedLinear.from_linear(plain, group_size, bits)
    packed = mx.quantize(plain.weight, group_size, bits)
    plain.weight = mx.dequantize(*packed, group_size=group_size, bits=bits).astype(plain.weight.dtype)
    return plain
