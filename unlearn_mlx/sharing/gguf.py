"""A fused model as a GGUF file, which llama.cpp and what builds on it run.

The layout is llama.cpp's: names of tensors and keys, the order of q's and k's rows for Llama, blocks of 32
weights for Q8_0 and Q4_1.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.sharing.rotation import heads_of, llama_rows, neox_rows

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

# How llama.cpp calls the ways of cutting a text before its bytes are merged, told by their patterns.
_CUTS = (
    ("individual_digits", "smollm"),
    (r"\\p{N}{1,3}", "llama-bpe"),
    (r"|\\p{N}| ?", "qwen2"),
)
_WIDE = ("token_embd.weight", "output.weight")  # kept at 8 bits in a 4-bit file, as llama.cpp does


def write_gguf(
    path: Path, model: Any, tokenizer: TokenizerWrapper, config: dict[str, Any], bits: int | None, name: str
) -> None:
    """Write a fused model in floats as GGUF: Q4_1, Q8_0, or float16 where ``bits`` is None.

    Raises:
        UserError: for an architecture or tokenizer that this does not know.
        EnvironmentCannot: where the disk is full.
    """
    architecture = ARCHITECTURES.get(config["model_type"])
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"no GGUF for '{config['model_type']}' here ({known}): use '--format hf' and llama.cpp"
        )
    writer = GGUFWriter(None, architecture)
    _add_shape(writer, config, bits, name)
    _add_tokenizer(writer, tokenizer, config)
    for tensor, array in _tensors(model, config, architecture):
        kind = _kind(tensor, array, bits)
        data = array if kind in (Kind.F32, Kind.F16) else quantize(array.astype(np.float32), kind)
        if kind == Kind.F16:
            data = array.astype(np.float16)
        writer.add_tensor(tensor, data, raw_dtype=kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise EnvironmentCannot(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        writer.close()


def read_gguf_weights(path: Path, config: dict[str, Any]) -> list[tuple[str, mx.array]]:
    """A file's tensors as float32 under mlx-lm's names, as far as rounding left them."""
    back = {there: here for here, there in _LAYER_NAMES.items()}
    top = {there: here for here, there in _TOP_NAMES.items()}
    permuted = ARCHITECTURES[config["model_type"]] == "llama" and not config.get("rope_traditional")
    weights = []
    for tensor in GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "rope_freqs":
            continue
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{back[parts[2]]}.{parts[3]}"
        else:
            name = f"{top[parts[0]]}.{parts[1]}"
        array = mx.array(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        heads = heads_of(name, config)
        weights.append((name, neox_rows(array, heads) if permuted and heads else array))
    return weights


def _tensors(model: Any, config: dict[str, Any], architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    permutes = architecture == "llama" and not config.get("rope_traditional")
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        heads = heads_of(name, config)
        if permutes and heads:
            array = llama_rows(array, heads)
        module, leaf = name.rsplit(".", 1)
        if module in _TOP_NAMES:
            tensor = f"{_TOP_NAMES[module]}.{leaf}"
        else:
            _, _, number, rest = module.split(".", 3)
            tensor = f"blk.{number}.{_LAYER_NAMES[rest]}.{leaf}"
        yield tensor, np.array(array.astype(mx.float32))
    factors = _rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _kind(tensor: str, array: np.ndarray, bits: int | None) -> Kind:
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
    writer.add_rope_freq_base(float(config.get("rope_theta", 10_000.0)))
    writer.add_vocab_size(int(config["vocab_size"]))
    kinds = {None: LlamaFileType.MOSTLY_F16, 8: LlamaFileType.MOSTLY_Q8_0, 4: LlamaFileType.MOSTLY_Q4_1}
    writer.add_file_type(kinds[bits])
    writer.add_quantization_version(2)


def _add_tokenizer(writer: GGUFWriter, tokenizer: TokenizerWrapper, config: dict[str, Any]) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    cut_text = json.dumps(content["pre_tokenizer"], ensure_ascii=False)
    if '"individual_digits": true' not in cut_text:
        cut_text = cut_text.replace("individual_digits", "")
    cut = next((name for pattern, name in _CUTS if pattern in cut_text), None)
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
    writer.add_chat_template(tokenizer.chat_template)


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
