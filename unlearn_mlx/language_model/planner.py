"""What a run will take, before it is started: memory by part, seconds by stage.

Sizes follow from the model's configuration; times from the rate at which this machine multiplies
matrices, measured for a moment, and from shares of it that whole stages were seen to reach.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.config import Settings
from unlearn_mlx.files import read_json
from unlearn_mlx.language_model.device import Device
from unlearn_mlx.language_model.generation import batch_width

GUARDED_PROMPT = 280  # tokens of guardrail, examples and question
PLAIN_PROMPT = 50
TRAINED_TOKENS = 56  # of a row, behind the prefix that all rows share
QUESTION_TOKENS = 14
SAMPLES_AN_ANSWER = 1.9  # guarded answers drawn for one that is kept
DRAFTS_A_QUESTION = 1.5
EVALUATED_ANSWERS = 330, 60  # probes answered, and how many of them are sampled too
# Shares of the measured rate that SmolLM2 on two cores reaches in decoding and in training.
DECODING_SHARE, TRAINING_SHARE = 0.4, 0.4
# Numbers kept for the backward pass of one token in one layer: multiples of its widths.
KEPT_OF_WIDTH, KEPT_OF_FEED_FORWARD = 16, 5


@dataclass(frozen=True)
class ModelShape:
    """What sizes and costs follow from."""

    layers: int
    width: int
    feed_forward: int
    key_values: int  # numbers of keys, or of values, a token has in one layer
    vocabulary: int
    tied: bool
    file_bytes: int

    @property
    def parameters(self) -> int:
        """Weights of all products: attention, feed-forward and vocabulary."""
        attention = 2 * self.width * self.width + 2 * self.width * self.key_values
        layer = attention + 3 * self.width * self.feed_forward
        return self.layers * layer + self.vocabulary * self.width * (1 if self.tied else 2)


@dataclass(frozen=True)
class Plan:
    """Bytes at the highest point of each part of a run, and seconds of each stage."""

    weights: int
    generation: int
    training: int
    evaluation: int
    seconds: dict[str, float]

    @property
    def memory(self) -> int:
        """The most that is held at a time, in bytes."""
        return self.weights + max(self.generation, self.training, self.evaluation)


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in an mlx-lm folder."""
    files = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    return shape_from(read_json(folder / "config.json"), files)


def shape_from(configuration: dict[str, Any], file_bytes: int) -> ModelShape:
    """The shape that a model's configuration says; ``file_bytes`` is how large its weights are on disk."""
    width = int(configuration["hidden_size"])
    heads = int(configuration["num_attention_heads"])
    head_width = int(configuration.get("head_dim") or width // heads)
    return ModelShape(
        layers=int(configuration["num_hidden_layers"]),
        width=width,
        feed_forward=int(configuration["intermediate_size"]),
        key_values=int(configuration.get("num_key_value_heads") or heads) * head_width,
        vocabulary=int(configuration["vocab_size"]),
        tied=bool(configuration.get("tie_word_embeddings", False)),
        file_bytes=file_bytes,
    )


def plan(shape: ModelShape, settings: Settings, device: Device, rate: float) -> Plan:
    """What a run of this model with these settings takes; ``rate`` is in products of floats a second."""
    number_bytes = 2 if device.is_gpu else 4
    weights = shape.file_bytes if device.is_gpu else shape.parameters * number_bytes
    cached = (GUARDED_PROMPT + settings.answer_tokens) * shape.layers * 2 * shape.key_values * number_bytes
    kept = shape.layers * (KEPT_OF_WIDTH * shape.width + KEPT_OF_FEED_FORWARD * shape.feed_forward)
    trained = settings.batch_rows * TRAINED_TOKENS * kept * number_bytes
    return Plan(weights, batch_width() * cached, trained, 0, _seconds(shape, settings, rate))


def _seconds(shape: ModelShape, settings: Settings, rate: float) -> dict[str, float]:
    token = 2 * shape.parameters  # operations of one token's forward pass
    decoding, training = rate * DECODING_SHARE, rate * TRAINING_SHARE
    retain = settings.neighbours + settings.general
    questions = settings.questions + retain
    guarded = settings.questions * settings.answers
    answered, sampled = EVALUATED_ANSWERS
    drafts = questions * DRAFTS_A_QUESTION
    answers = guarded * SAMPLES_AN_ANSWER + settings.questions + retain
    rows = guarded * 0.85 + retain + settings.questions * 0.5 * (settings.avoid_weight > 0)
    probes = 2 * (answered + sampled * settings.samples)
    row_tokens = TRAINED_TOKENS * 3  # forward, and twice as much backward
    return {
        "questions": drafts * (QUESTION_TOKENS + PLAIN_PROMPT / 4) * token / decoding,
        "answers": answers * (settings.answer_tokens + PLAIN_PROMPT) * token / decoding,
        "train": rows * settings.epochs * row_tokens * token / training,
        "evaluate": probes * (30 + PLAIN_PROMPT) * token / decoding,
    }


def multiplication_rate() -> float:
    """Products of floats that this machine does in a second, as the model's layers ask for them."""
    dtype = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    rows, width = 512, 1536
    left, right = mx.ones((rows, width), dtype), mx.ones((width, width), dtype)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        mx.eval(left @ right)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * width * width / best
