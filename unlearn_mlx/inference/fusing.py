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
from mlx_lm.utils import dequantize_model, quantize_model

from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.loading import plain_layers
from unlearn_mlx.inference.opening import Opened, open_folder
from unlearn_mlx.models.registry import ModelSource

GROUP_SIZE = 64  # of a model that was not quantized before: mlx-lm's own default

# Bits of the sums; None leaves them in floats, "own" rounds each layer as it was rounded before.
Bits = int | Literal["own"] | None


class FusedAtCall(nn.Module):
    """An adapted layer that is fused and rounded anew whenever it is called, and forgotten behind it.

    What it computes is what the fused layer would; only one layer at a time is held in the larger form.
    """

    def __init__(self, layer: Any, bits: Bits, group_size: int) -> None:
        super().__init__()
        self.layer, self._bits, self._group_size = layer, bits, group_size

    def __call__(self, x: mx.array) -> mx.array:
        """The layer's outputs."""
        result: mx.array = _fused_layer(self.layer, self._bits, self._group_size)(x)
        return result


@contextmanager
def fused(model: ChatModel, adapter_folder: Path, bits: int | None, group_size: int) -> Iterator[None]:
    """The model with an adapter made part of its weights, as long as it lasts.

    ``bits`` rounds the sums as affine quantization in groups of ``group_size`` does; None leaves them as
    they are. It takes no more memory than the model does: layers that become no larger are replaced one after
    the other, and read again from the model's files afterwards; others are fused whenever they are called.
    """
    adapter = load_adapter(model.model, adapter_folder)
    names = [name for name, _ in adapter.layers()]
    if any(_grows(layer.linear, bits) for _, layer in adapter.layers()):
        for name, layer in adapter.layers():
            _replace(model.model, name, FusedAtCall(layer, bits, group_size))
        try:
            yield
        finally:
            for name, layer in adapter.layers():
                _replace(model.model, name, layer.linear)
        return
    for name, layer in adapter.given_away():
        new = _fused_layer(layer, bits, group_size)
        _replace(model.model, name, new)
        del layer
        mx.eval(new.parameters())
    try:
        yield
    finally:
        for name, layer in plain_layers(model.source, names):
            _replace(model.model, name, layer)
            mx.eval(layer.parameters())


def fused_model(source: ModelSource, adapter_folder: Path, bits: int | None) -> Opened:
    """A model of its own, fused for good, as it is shipped: model, tokenizer and configuration.

    Nothing of it is computed yet: whoever writes it asks for one part after the other, and never holds all.
    ``bits`` is 4, 8, or None for floats. A model that has that many bits already keeps every layer
    that the adapter left alone as it is, bit by bit; any other is computed in floats and rounded once.

    Raises:
        EnvironmentCannot: where the weights are damaged.
        UserError: where the adapter is another model's.
    """
    model, tokenizer, config = open_folder(source, lazy=True)
    adapter = load_adapter(model, adapter_folder)
    known = config.get("quantization") or {}
    keeps_bits = bits is not None and known.get("bits") == bits
    for name, layer in adapter.given_away():
        _replace(model, name, _fused_layer(layer, "own" if keeps_bits else None, GROUP_SIZE))
    if not keeps_bits:
        model = dequantize_model(model)
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
        if bits is not None:
            model, config = quantize_model(model, config, known.get("group_size", GROUP_SIZE), bits)
    return model, tokenizer, config


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    model.update_modules(tree_unflatten([(name, layer)]))


def _grows(linear: nn.Module, bits: int | None) -> bool:
    """Whether a layer takes more memory once it is fused."""
    return isinstance(linear, nn.QuantizedLinear) and (bits is None or bits > linear.bits)


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
