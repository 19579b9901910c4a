"""What a model's sizes and costs follow from, as its configuration says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_json


@dataclass(frozen=True)
class ModelShape:
    """What sizes and costs follow from."""

    layers: int
    hidden_size: int
    feed_forward: int
    heads: int
    key_values: int  # numbers of keys, or of values, a token has in one layer
    vocabulary: int
    tied: bool
    file_bytes: int

    @property
    def adapter_sides(self) -> int:
        """Inputs and outputs of all linear layers, which an adapter has a vector for at rank 1."""
        attention = 2 * 2 * self.hidden_size + 2 * (self.hidden_size + self.key_values)
        return self.layers * (attention + 3 * (self.hidden_size + self.feed_forward))

    @property
    def parameters(self) -> int:
        """Weights of all products: attention, feed-forward and vocabulary."""
        attention = 2 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * self.key_values
        layer = attention + 3 * self.hidden_size * self.feed_forward
        return self.layers * layer + self.vocabulary * self.hidden_size * (1 if self.tied else 2)


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in an mlx-lm folder."""
    files = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    return shape_from(read_json(folder / "config.json"), files)


def shape_or_none(folder: Path) -> ModelShape | None:
    """The same; None where its configuration says its sizes in other words."""
    try:
        return shape_of(folder)
    except UserError:
        return None


def shape_from(configuration: dict[str, Any], file_bytes: int) -> ModelShape:
    """The shape that a model's configuration says; ``file_bytes`` is how large its weights are on disk.

    Raises:
        UserError: for a configuration that does not say it in Llama's words.
    """
    # A model that sees pictures too keeps what it reads with in a part of its own.
    configuration = {**configuration, **(configuration.get("text_config") or {})}
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    if missing := [key for key in needed if not isinstance(configuration.get(key), int)]:
        raise UserError(
            f"no plan for '{configuration.get('model_type')}', which has no {missing[0]}: leave out --dry-run"
        )
    hidden_size = int(configuration["hidden_size"])
    heads = int(configuration["num_attention_heads"])
    head_width = int(configuration.get("head_dim") or hidden_size // heads)
    return ModelShape(
        layers=int(configuration["num_hidden_layers"]),
        hidden_size=hidden_size,
        feed_forward=int(configuration["intermediate_size"]),
        heads=heads,
        key_values=int(configuration.get("num_key_value_heads") or heads) * head_width,
        vocabulary=int(configuration["vocab_size"]),
        tied=bool(configuration.get("tie_word_embeddings", False)),
        file_bytes=file_bytes,
    )
