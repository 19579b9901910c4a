"""The two orders of the rows of q and k: llama.cpp rotates neighbours, transformers and mlx rotate halves."""

from typing import Any

import mlx.core as mx


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
