"""An adapter made part of the weights, at full precision or rounded to few bits.

Rounding can undo unlearning: an update smaller than half a step of the grid vanishes (Zhang et al. 2024,
Catastrophic Failure of LLM Unlearning via Quantization).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load, quantize_model

from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.adapters import Adapter, load_adapter
from unlearn_mlx.models.registry import ModelSource

GROUP_SIZE = 64  # of a model that was not quantized before: mlx-lm's own default

# Bits of the sums; None leaves them in floats, "own" rounds each layer as it was rounded before.
Bits = int | Literal["own"] | None


def fused_layers(adapter: Adapter, bits: Bits, group_size: int = GROUP_SIZE) -> list[tuple[str, nn.Module]]:
    """W + scale * B A of each adapted layer under the layer's name."""
    return [(name, _fused_layer(layer, bits, group_size)) for name, layer in adapter.layers()]


@contextmanager
def fused(adapter: Adapter, bits: int | None, group_size: int) -> Iterator[None]:
    """The model with its adapted layers fused, for as long as it lasts.

    ``bits`` rounds the sums as affine quantization in groups of ``group_size`` does; None leaves them as
    they are.
    """
    layers = fused_layers(adapter, bits, group_size)
    adapter.model.update_modules(tree_unflatten(layers))
    mx.eval([layer.parameters() for _, layer in layers])
    try:
        yield
    finally:
        adapter.model.update_modules(tree_unflatten(adapter.layers()))


def fused_model(
    source: ModelSource, adapter_folder: Path, bits: int | None
) -> tuple[nn.Module, TokenizerWrapper, dict[str, Any]]:
    """A model of its own, fused for good, as it is shipped: model, tokenizer and configuration.

    ``bits`` is 4, 8, or None for floats. A model that has that many bits already keeps every layer
    that the adapter left alone as it is, bit by bit; any other is computed in floats and rounded once.

    Raises:
        EnvironmentCannot: where the weights are damaged.
        UserError: where the adapter is another model's.
    """
    try:
        loaded: Any = load(str(source.folder), lazy=True, return_config=True)
    except Exception as error:  # mlx-lm and safetensors raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentCannot(f"cannot load {source.folder}: {reason}; fetch the model again") from error
    model, tokenizer, config = loaded
    adapter = load_adapter(model, adapter_folder)
    known = config.get("quantization") or {}
    keeps_bits = bits is not None and known.get("bits") == bits
    model.update_modules(tree_unflatten(fused_layers(adapter, "own" if keeps_bits else None)))
    if not keeps_bits:
        model = dequantize_model(model)
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
        if bits is not None:
            model, config = quantize_model(model, config, known.get("group_size", GROUP_SIZE), bits)
    mx.eval(model.parameters())
    return model, tokenizer, config


def _fused_layer(layer: Any, bits: Bits, group_size: int) -> nn.Module:
    is_quantized = isinstance(layer.linear, nn.QuantizedLinear)
    plain: nn.Linear = layer.fuse(dequantize=bits != "own")
    if not isinstance(bits, int):
        return plain
    if is_quantized:
        return nn.QuantizedLinear.from_linear(plain, group_size, bits)
    # A model that computes in floats gets the rounded values as floats: the same numbers.
    packed = mx.quantize(plain.weight, group_size, bits)
    plain.weight = mx.dequantize(*packed, group_size=group_size, bits=bits).astype(plain.weight.dtype)
    return plain
