"""A model with its adapter made part of the weights, in the precision that it is shipped in."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load, quantize_model

from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.language_model.adapters import load_adapter
from unlearn_mlx.language_model.models import ModelSource

GROUP_SIZE = 64  # of a model that was not quantized before: mlx-lm's own default


def fuse(
    source: ModelSource, adapter_folder: Path, bits: int | None
) -> tuple[nn.Module, TokenizerWrapper, dict[str, Any]]:
    """W + scale * B A in the place of each adapted layer; model, tokenizer and configuration.

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
    layers = [(name, layer.fuse(dequantize=not keeps_bits)) for name, layer in adapter.layers()]
    model.update_modules(tree_unflatten(layers))
    if not keeps_bits:
        model = dequantize_model(model)
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
        if bits is not None:
            model, config = quantize_model(model, config, known.get("group_size", GROUP_SIZE), bits)
    mx.eval(model.parameters())
    return model, tokenizer, config


def neox_rows(weight: mx.array, heads: int) -> mx.array:
    """Rows of q or k from llama.cpp's order, which rotates neighbours, to the one that rotates halves."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama_rows(weight: mx.array, heads: int) -> mx.array:
    """The other way round: as llama.cpp's Llama wants the rows of q and k."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def heads_of(name: str, config: dict[str, Any]) -> int | None:
    """How many heads the rows of a weight or bias are, where they are rotated; None for all others."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    if ".k_proj." in name:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None
