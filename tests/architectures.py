"""Random models of the architectures people use: Llama 3 with its real tokenizer in 4 bits, and Qwen2.

As the hub's copy of Llama-3-8B the first keeps its embedding in half precision: 5.28 GB are too many for
all of it in 4 bits.
"""

import base64
import shutil
from pathlib import Path
from typing import Any

import llama_models.llama3
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from llama_models.llama3.tokenizer import Tokenizer as ReferenceTokenizer
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.helpers import write_config

REFERENCE_MODEL = Path(llama_models.llama3.__file__).parent / "tokenizer.model"
VOCABULARY = 128_256

# As in the tokenizer_config.json of Meta-Llama-3-8B-Instruct.
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

LLAMA3_SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
FOUR_BITS = {"group_size": 64, "bits": 4}
# Llama 3.2's stretching of long waves.
LLAMA32_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# How Qwen2 cuts a text before its bytes are merged: digit by digit.
QWEN2_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3_tokenizer() -> Tokenizer:
    """Llama 3's tokenizer as the hub carries it, made from Meta's file of ranked byte strings."""
    ranks = {}
    for line in REFERENCE_MODEL.read_text().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token in ranks:
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [
            (ranks[left], ranks[right], left, right) for left, right in parts if {left, right} <= ranks.keys()
        ]
        merges += [(spelled(left), spelled(right)) for _, _, left, right in sorted(known)]
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ReferenceTokenizer.pat_str), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ReferenceTokenizer(REFERENCE_MODEL).special_tokens
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in sorted(special, key=special.__getitem__)
        ]
    )
    # The hub's tokenizer puts the start token before every text: a prompt must not get a second one.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", special["<|begin_of_text|>"])],
    )
    return tokenizer


def write_llama3_model(folder: Path, **changes: Any) -> Path:
    """A Llama 3 of two layers with its full vocabulary, random weights in 4 bits but the embedding's."""
    folder.mkdir(parents=True)
    tokenizer = llama3_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_config(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=False,
        chat_template=LLAMA3_TEMPLATE,
    )
    ends = [tokenizer.token_to_id(token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    write_config(folder / "generation_config.json", eos_token_id=ends)
    shape = {**LLAMA3_SHAPE, **changes}
    model = llama.Model(llama.ModelArgs.from_dict(shape))
    _write(folder, model, {**shape, "eos_token_id": ends}, in_floats="model.embed_tokens")
    return folder


def write_qwen2_model(folder: Path, tokenizer_folder: Path) -> Path:
    """A Qwen2 of two layers, random weights in 4 bits, with biases on q, k and v as that architecture has."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {
        **LLAMA3_SHAPE,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": True,
    }
    end = tokenizer.token_to_id("<|im_end|>")
    _write(folder, qwen2.Model(qwen2.ModelArgs.from_dict(shape)), {**shape, "eos_token_id": end})
    return folder


def _write(folder: Path, model: nn.Module, config: dict, in_floats: str = "") -> None:
    source = np.random.default_rng(0)
    weights = [
        (name, mx.array(source.normal(0, 0.3, value.shape).astype(np.float16)))
        for name, value in tree_flatten(model.parameters())
        if value.ndim > 1 or "bias" in name
    ]
    model.load_weights(weights, strict=False)
    model.set_dtype(mx.float16)
    nn.quantize(
        model, **FOUR_BITS, class_predicate=lambda path, m: hasattr(m, "to_quantized") and path != in_floats
    )
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    write_config(folder / "config.json", **config, quantization=FOUR_BITS)


def _byte_letters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
