"""An adapter alone as a GGUF file, which llama.cpp puts on a base model's GGUF by ``--lora``.

llama.cpp adds alpha / rank * B A to a weight, with A as [rank, inputs] and B as [outputs, rank]. B's rows are
in the order of the weight's own, so those of q and k are turned as in the base's file.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGUFReader, GGUFType, GGUFWriter, Keys

from unlearn_mlx.inference.adapters import Adapter, LoraShape, adapted_keys
from unlearn_mlx.sharing.gguf import architecture_of, own_name, tensor_name, turned_heads, write_file
from unlearn_mlx.sharing.rotation import llama_rows, neox_rows


def write_gguf_lora(path: Path, adapter: Adapter, config: dict[str, Any], name: str) -> None:
    """Write an adapter in half precision; ``config`` is its base's.

    Raises:
        UserError: for an architecture that this does not know.
        OSError: where it cannot be written.
    """
    writer = GGUFWriter(None, architecture_of(config))
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, adapter.shape.scale * adapter.shape.rank)
    arrays = []
    for array_name, array in adapter.weights().items():
        module, _, leaf = array_name.rpartition(".")
        weight, array = f"{module}.weight", array.T
        if leaf == "lora_b" and (heads := turned_heads(weight, config)):
            array = llama_rows(array, heads)
        arrays.append(np.array(array.astype(mx.float16)))
        tensor = f"{tensor_name(weight)}.{leaf}"
        writer.add_tensor_info(tensor, arrays[-1].shape, arrays[-1].dtype, arrays[-1].nbytes)
    write_file(path, writer, arrays)


def read_gguf_lora(path: Path, config: dict[str, Any]) -> tuple[LoraShape, dict[str, mx.array]]:
    """The adapter in a file of ``write_gguf_lora``: its shape, and each array under mlx-lm's name."""
    reader = GGUFReader(path)
    weights = {}
    for tensor in reader.tensors:
        name, _, leaf = tensor.name.rpartition(".")
        weight = own_name(name)
        array = mx.array(np.array(tensor.data))
        if leaf == "lora_b" and (heads := turned_heads(weight, config)):
            array = neox_rows(array, heads)
        weights[f"{weight.removesuffix('.weight')}.{leaf}"] = array.T
    rank = next(array.shape[1] for name, array in weights.items() if name.endswith("lora_a"))
    alpha = float(reader.fields[Keys.Adapter.LORA_ALPHA].contents())
    numbers = [int(name.split(".")[2]) for name in weights if name.startswith("model.layers.")]
    layers = int(config["num_hidden_layers"])
    return LoraShape(rank, alpha / rank, layers - min(numbers, default=0), adapted_keys(weights)), weights
