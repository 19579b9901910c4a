"""What a run will take, before it is started: memory by part, seconds by stage.

Sizes follow from the model's configuration; times from the rate at which this machine multiplies
matrices, measured for a moment, and from shares of it that whole stages were seen to reach.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.compute.batch_size import BATCH_SIZES
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import GIGABYTE, mac_memory
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_json

PLAIN_PROMPT = 50
TRAINED_TOKENS = 56  # of a row, behind the prefix that all rows share
LOGITS_CHUNK = 64  # targets whose logits training computes at a time
QUESTION_TOKENS = 14
SAMPLES_AN_ANSWER = 1.9  # guarded answers drawn for one that is kept
DRAFTS_A_QUESTION = 1.5
PROBES = 480  # of a topic that somebody wrote probes for
EVALUATED_ANSWERS = 330, 60  # probes answered, and how many of them are sampled too
# Shares of the measured rate that SmolLM2 on two cores reaches in decoding and in training.
DECODING_SHARE, TRAINING_SHARE = 0.4, 0.4

# Memory, counted in tokens. The prompts are the guardrail's and the chat template's.
GUARDED_PREFIX = 178  # what guarded prompts share
GUARDED_REST = 41  # the longest question and hint behind it
CACHE_STEP = 64  # caches grow by so many tokens at once
ROW_PREFIX = 24  # what training rows share
ROW_QUESTION = 32  # the longest question of a row; its answer comes on top
DIVERGENCE_TOKENS = 4 * 64  # rows and tokens whose distributions the evaluation compares at once

# Arrays that exist at the same time, fitted on a CPU by ``python -m benchmarks.planner``. Those of one layer
# of a prompt: widths, feed-forward widths, attention scores; and logits of one token a row.
PROMPT_WIDTHS, PROMPT_FEED_FORWARDS, PROMPT_SCORES, PROMPT_LOGITS = 5, 6, 8, 2
# Those that every layer keeps for the backward pass; and logits of a chunk of targets.
KEPT_WIDTHS, KEPT_FEED_FORWARDS, KEPT_SCORES, KEPT_LOGITS = 6, 2.5, 2, 22
COMPARED_LOGITS = 19.3  # of the evaluation's tokens
ADAPTER_COPIES = 4  # weights, gradients and Adam's two means

LLAMA3_8B_BYTES = int(4.9 * GIGABYTE)  # of the 4-bit weights on the hub
MACS = (8, 16, 24, 32, 64)  # gigabytes


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


def plan(shape: ModelShape, settings: Settings, device: Device, rate: float) -> Plan:
    """What a run of this model with these settings takes; ``rate`` is in products of floats a second."""
    number_bytes = 2 if device.is_gpu else 4
    weights = shape.file_bytes if device.is_gpu else shape.parameters * number_bytes
    return Plan(
        weights,
        _generation(shape, settings, number_bytes),
        _training(shape, settings, number_bytes),
        int(COMPARED_LOGITS * DIVERGENCE_TOKENS * shape.vocabulary * 4),
        _seconds(shape, settings, rate),
    )


def _generation(shape: ModelShape, settings: Settings, number_bytes: int) -> int:
    """Keys and values of a full batch, and one layer of its prompts."""
    rows = BATCH_SIZES[-1]
    token = PROMPT_WIDTHS * shape.hidden_size + PROMPT_FEED_FORWARDS * shape.feed_forward
    scores = PROMPT_SCORES * shape.heads * (GUARDED_PREFIX + GUARDED_REST)
    prompts = rows * GUARDED_REST * (token + scores)
    first = _kept(shape, rows, GUARDED_REST) + prompts
    last = _kept(shape, rows, GUARDED_REST + settings.answer_tokens)
    return max(first, last) * number_bytes + PROMPT_LOGITS * rows * shape.vocabulary * 4


def _kept(shape: ModelShape, rows: int, own_tokens: int) -> int:
    """Numbers of keys and values: of the shared prefix once, and of each row's own tokens."""
    own = -(-own_tokens // CACHE_STEP) * CACHE_STEP
    return (GUARDED_PREFIX + rows * own) * shape.layers * 2 * shape.key_values


def _training(shape: ModelShape, settings: Settings, number_bytes: int) -> int:
    """What the widest batch keeps for the backward pass, logits, and the adapter with its optimizer."""
    rows, width = settings.batch_size + 1, ROW_QUESTION + settings.answer_tokens  # a batch may have one more
    tokens = rows * width + ROW_PREFIX
    token = KEPT_WIDTHS * shape.hidden_size + KEPT_FEED_FORWARDS * shape.feed_forward
    scores = KEPT_SCORES * rows * shape.heads * width * (ROW_PREFIX + width)
    kept = shape.layers * (tokens * token + scores)
    logits = KEPT_LOGITS * LOGITS_CHUNK * shape.vocabulary * 4
    adapter = ADAPTER_COPIES * settings.rank * shape.adapter_sides * 4
    return int(kept * number_bytes + logits + adapter)


def preset_for(planned: Plan, memory_bytes: int) -> str | None:
    """The preset for a machine: "thorough" where half of its memory is enough; None where all is not.

    The longer run is for machines that stay usable beside it; a small one gets through "standard".
    """
    if planned.memory > memory_bytes:
        return None
    return "thorough" if planned.memory <= memory_bytes / 2 else "standard"


def mac_table() -> list[dict[str, Any]]:
    """Llama-3-8B in 4 bits on Macs of several sizes: the planned bytes of each part, and the preset.

    ``preset`` is None where llama3 does not fit and another model is taken.
    """
    shape = ModelShape(32, 4096, 14_336, 32, 1024, 128_256, False, LLAMA3_8B_BYTES)
    rows = []
    for gigabytes in MACS:
        device = Device("metal", "Mac", mac_memory(gigabytes), 8)
        planned = plan(shape, make_settings("standard"), device, 1e12)
        rows.append(
            {
                "gigabytes": gigabytes,
                "for_the_gpu": device.memory_bytes,
                "generation": planned.weights + planned.generation,
                "training": planned.weights + planned.training,
                "evaluation": planned.weights + planned.evaluation,
                "preset": preset_for(planned, device.memory_bytes),
            }
        )
    return rows


def _seconds(shape: ModelShape, settings: Settings, rate: float) -> dict[str, float]:
    token = 2 * shape.parameters  # operations of one token's forward pass
    decoding, training = rate * DECODING_SHARE, rate * TRAINING_SHARE
    written = settings.questions + settings.neighbours + settings.general
    retain = settings.neighbours + settings.general + settings.instructions
    guarded = settings.questions * settings.answers
    answered, sampled = (min(count, settings.probes * count / PROBES) for count in EVALUATED_ANSWERS)
    drafts = written * DRAFTS_A_QUESTION
    answers = guarded * SAMPLES_AN_ANSWER + settings.questions + retain
    rows = guarded * 0.85 + retain + settings.questions * 0.5 * (settings.npo_weight > 0)
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
