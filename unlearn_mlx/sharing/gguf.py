"""A fused model as a GGUF file, which llama.cpp and what builds on it run.

The layout is llama.cpp's: names of tensors and keys, the order of q's and k's rows for Llama, blocks of 32
weights for Q8_0 and Q4_1.
"""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper

from unlearn_mlx.errors import UserError
from unlearn_mlx.sharing.rotation import heads_of, llama_rows, neox_rows
from unlearn_mlx.text.printable import one_line

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

# How llama.cpp calls the ways of cutting a text before its bytes are merged. There are dozens that differ in
# a letter, and under another's name a file would cut other tokens without a word: these very ones are known.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: dict[str, list[dict[str, Any]]] = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ],
    **{
        name: [
            {"type": "Split", "pattern": {"Regex": _WORDS % digits}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]
        for name, digits in {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}.items()
    },
}
ROPE_FACTORS = "rope_freqs.weight"
_WIDE = ("token_embd.weight", "output.weight")  # kept at 8 bits in a 4-bit file, as llama.cpp does


def write_gguf(
    path: Path, model: Any, tokenizer: TokenizerWrapper, config: dict[str, Any], bits: int | None, name: str
) -> None:
    """Write a fused model in floats as GGUF: Q4_1, Q8_0, or float16 where ``bits`` is None.

    Raises:
        UserError: for an architecture or tokenizer that this does not know, before anything is computed.
        OSError: where it cannot be written.
    """
    architecture = architecture_of(config)
    # What the configuration leaves out is what mlx-lm computes with, not llama.cpp's own default.
    config = {**config, **{key: value for key, value in vars(model.args).items() if value is not None}}
    writer = GGUFWriter(None, architecture)
    _add_shape(writer, config, bits, name)
    _add_tokenizer(writer, tokenizer, config)
    factors = _rope_factors(config)
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))  # each is forgotten once it is written
    kinds = {name: _kind(tensor_name(name), array, bits) for name, array in parameters.items()}
    for name, array in parameters.items():
        shape = quant_shape_to_byte_shape(array.shape, kinds[name])
        size = math.prod(shape)
        writer.add_tensor_info(tensor_name(name), shape, np.dtype(np.uint8), size, kinds[name])
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    tensors = (_data(name, parameters.pop(name), kinds[name], config) for name in list(parameters))
    write_file(path, writer, tensors if factors is None else chain(tensors, [factors]))


def write_file(path: Path, writer: GGUFWriter, tensors: Iterable[np.ndarray]) -> None:
    """Write what a writer was told, and its tensors in the order in which they were told.

    Raises:
        OSError: where it cannot be written, also where only the last bytes cannot, which the writer's own way
            does not see.
    """
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (file,) = writer.fout
        for array in tensors:
            writer.write_padding(file, file.tell())
            file.write(np.ascontiguousarray(array).data)
        writer.write_padding(file, file.tell())
    finally:
        writer.close()


def architecture_of(config: dict[str, Any]) -> str:
    """What llama.cpp calls a model's architecture.

    Raises:
        UserError: for one that this does not know.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"no GGUF for '{one_line(kind)[:40]}' here ({known}): use '--format mlx', or '--format adapter'"
        )
    return ARCHITECTURES[kind]


def read_gguf_weights(
    path: Path, config: dict[str, Any], dtype: mx.Dtype = mx.float32
) -> Iterator[tuple[str, mx.array]]:
    """A file's tensors under mlx-lm's names, as far as rounding left them; one after the other."""
    for tensor in GGUFReader(path).tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        name = own_name(tensor.name)
        array = mx.array(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        heads = turned_heads(name, config)
        array = (neox_rows(array, heads) if heads else array).astype(dtype)
        mx.eval(array)
        yield name, array


def tensor_name(name: str) -> str:
    """llama.cpp's name of a parameter."""
    module, leaf = name.rsplit(".", 1)
    if module in _TOP_NAMES:
        return f"{_TOP_NAMES[module]}.{leaf}"
    _, _, number, rest = module.split(".", 3)
    return f"blk.{number}.{_LAYER_NAMES[rest]}.{leaf}"


def own_name(tensor: str) -> str:
    """mlx-lm's name of a parameter by llama.cpp's."""
    parts = tensor.split(".")
    if parts[0] != "blk":
        module = next(here for here, there in _TOP_NAMES.items() if there == parts[0])
        return f"{module}.{parts[1]}"
    module = next(here for here, there in _LAYER_NAMES.items() if there == parts[2])
    return f"model.layers.{parts[1]}.{module}.{parts[3]}"


def turned_heads(name: str, config: dict[str, Any]) -> int | None:
    """How many heads the rows of a weight are that stand in another order in a GGUF; None for all others."""
    is_turned = ARCHITECTURES[config["model_type"]] == "llama" and not config.get("rope_traditional")
    return heads_of(name, config) if is_turned else None


def _data(name: str, array: mx.array, kind: Kind, config: dict[str, Any]) -> np.ndarray:
    """A parameter as its bytes stand in the file."""
    heads = turned_heads(name, config)
    numbers = np.array((llama_rows(array, heads) if heads else array).astype(mx.float32))
    if kind == Kind.F16:
        return numbers.astype(np.float16)
    return numbers if kind == Kind.F32 else quantize(numbers, kind)


def _kind(tensor: str, array: mx.array, bits: int | None) -> Kind:
    if array.ndim == 1:
        return Kind.F32
    if bits is None or array.shape[-1] % 32:
        return Kind.F16
    return Kind.Q8_0 if bits == 8 or tensor in _WIDE else Kind.Q4_1


def _add_shape(writer: GGUFWriter, config: dict[str, Any], bits: int | None, name: str) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_name(name)
    writer.add_context_length(int(config.get("max_position_embeddings", 2048)))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    head_width = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_dimension_count(head_width)
    if head_width * heads != config["hidden_size"]:  # llama.cpp would divide
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    kinds = {None: LlamaFileType.MOSTLY_F16, 8: LlamaFileType.MOSTLY_Q8_0, 4: LlamaFileType.MOSTLY_Q4_1}
    writer.add_file_type(kinds[bits])
    writer.add_quantization_version(2)


def _add_tokenizer(writer: GGUFWriter, tokenizer: TokenizerWrapper, config: dict[str, Any]) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    cut = _cut(content["pre_tokenizer"])
    if model["type"] != "BPE" or cut is None:
        raise UserError("no GGUF for this tokenizer here: use '--format hf' and llama.cpp's own converter")
    words = {index: word for word, index in model["vocab"].items()}
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    tokens, kinds = [], []
    for index in range(int(config["vocab_size"])):
        if index in added:
            tokens.append(added[index]["content"])
            kinds.append(TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED)
        elif index in words:
            tokens.append(words[index])
            kinds.append(TokenType.NORMAL)
        else:  # a vocabulary may be padded beyond its tokenizer's
            tokens.append(f"[PAD{index}]")
            kinds.append(TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for role in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(int(index))
    writer.add_add_bos_token(tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _cut(steps: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for a tokenizer's steps before its merges; None where it is none of ``_CUTS``."""
    if steps is None:
        return None
    found = [
        {key: value for key, value in step.items() if key != "trim_offsets"}  # of places in the text alone
        for step in steps.get("pretokenizers", [steps])
    ]
    return next((name for name, known in _CUTS.items() if found == known), None)


def _rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """What each frequency is divided by in Llama 3.1 and 3.2's rotation, [width of a head / 2].

    Long waves are stretched by ``factor``, short ones stay, those between are blended. None for a plain
    rotation.

    Raises:
        UserError: for a rotation of another kind.
    """
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"no GGUF for '{kind}' positions here: use '--format hf' and llama.cpp's converter")
    width = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    waves = 2 * np.pi * float(config["rope_theta"]) ** (np.arange(0, width, 2) / width)
    low, high = float(scaling.get("low_freq_factor", 1.0)), float(scaling.get("high_freq_factor", 4.0))
    length = float(scaling.get("original_max_position_embeddings", 8192))
    smooth = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray = 1 / ((1 - smooth) / float(scaling["factor"]) + smooth)
    return factors.astype(np.float32)
