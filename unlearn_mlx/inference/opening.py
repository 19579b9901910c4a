"""A model's folder opened by mlx-lm, with what it would take wrong put right.

Other programs write the same model in other ways: transformers 5 keeps the positions' frequency in a place of
its own, tokenizers come with several chat templates, and folders have names that are patterns to ``glob``.
"""

import glob
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, load_tokenizer

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.arrays import check_header
from unlearn_mlx.inference.chat_template import default_template
from unlearn_mlx.models.registry import ModelSource
from unlearn_mlx.runs.files import read_json

Opened = tuple[nn.Module, TokenizerWrapper, dict[str, Any]]  # model, tokenizer, configuration


def open_folder(source: ModelSource, lazy: bool = False) -> Opened:
    """Model, tokenizer with its default chat template alone, and the configuration as mlx-lm reads it.

    ``lazy`` leaves weights on the disk until they are used.

    Raises:
        EnvironmentCannot: where the files are damaged or of an unknown architecture.
    """
    try:
        for weights in source.folder.glob("model*.safetensors"):
            check_header(weights)
        changes = with_plain_positions(read_json(source.folder / "config.json"))
        model, config = load_model(_LiteralPath(source.folder), lazy, model_config=changes)
        tokenizer: Any = load_tokenizer(
            source.folder, _tokenizer_settings(source.folder), eos_token_ids=config.get("eos_token_id")
        )
    except UserError:
        raise
    except Exception as error:  # mlx-lm and safetensors raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentCannot(f"cannot load {source.folder}: {reason}; fetch the model again") from error
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = default_template(tokenizer.chat_template, source.name)
    return model, tokenizer, config


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    """What to read in the place of a tokenizer's own settings."""
    # Cleaning up was made for words cut by another method; it only draws a warning into the first answer.
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    # Where models that see keep theirs, which transformers reads for their images' sake alone.
    alone = folder / "chat_template.json"
    own = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    if alone.exists() and not own.get("chat_template") and not (folder / "chat_template.jinja").exists():
        settings["chat_template"] = read_json(alone)["chat_template"]
    return settings


def with_plain_positions(config: dict[str, Any]) -> dict[str, Any]:
    """What to change in a configuration with positions in ``rope_parameters``, as transformers 5 writes it.

    Most of mlx-lm's models know ``rope_theta`` and ``rope_scaling`` beside the rest alone, and would take
    their own defaults.
    """
    changes: dict[str, Any] = {}
    parameters = config.get("rope_parameters") or {}
    by_layer = parameters if "full_attention" in parameters else {"full_attention": parameters}
    full, sliding = by_layer["full_attention"] or {}, by_layer.get("sliding_attention") or {}
    if "rope_theta" in full:
        changes["rope_theta"] = full["rope_theta"]
    if "rope_theta" in sliding:
        changes["rope_local_base_freq"] = sliding["rope_theta"]
    if "partial_rotary_factor" in full:
        changes["partial_rotary_factor"] = full["partial_rotary_factor"]
    kind = full.get("rope_type") or full.get("type") or "default"
    if kind != "default" and not config.get("rope_scaling"):
        # Where transformers looks for the length before stretching, in its order.
        lengths = [each.get("original_max_position_embeddings") for each in (config, full)]
        original = next(filter(None, lengths), config.get("max_position_embeddings"))
        kept = {key: value for key, value in full.items() if key != "rope_theta"}
        changes["rope_scaling"] = {**kept, "rope_type": kind}
        if original and kind in ("llama3", "yarn", "longrope"):
            changes["rope_scaling"]["original_max_position_embeddings"] = original
    if isinstance(config.get("text_config"), dict) and (inner := with_plain_positions(config["text_config"])):
        changes["text_config"] = {**config["text_config"], **inner}
    return changes


class _LiteralPath(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """A folder that mlx-lm finds weights in by ``glob.glob``, whatever signs its own name has."""

    def __truediv__(self, name: Any) -> Path:
        return Path(glob.escape(str(self)) if "*" in str(name) else str(self), name)
