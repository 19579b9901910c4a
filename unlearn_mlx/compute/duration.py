"""How long the stages of a run will take, by the rate at which this machine multiplies matrices.

The rate is measured for a moment; what whole stages reach of it was seen on SmolLM2.
"""

import time

import mlx.core as mx

from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.config import Settings

PLAIN_PROMPT = 50
ROW_QUESTION = 24  # tokens of a row behind the prefix that all rows share; its answer comes on top
QUESTION_TOKENS = 14
SAMPLES_AN_ANSWER = 1.9  # guarded answers drawn for one that is kept
DRAFTS_A_QUESTION = 1.5
PROBES = 480  # of a topic that somebody wrote probes for
EVALUATED_ANSWERS = 330, 60  # probes answered, and how many of them are sampled too
# Shares of the measured rate that SmolLM2 on two cores reaches in decoding and in training.
DECODING_SHARE, TRAINING_SHARE = 0.4, 0.4
CHECKPOINTING = 4 / 3  # times as long: each layer is computed a second time


def stage_seconds(
    shape: ModelShape, settings: Settings, rate: float, checkpointing: bool = False
) -> dict[str, float]:
    """Seconds of each stage; ``rate`` is in products of floats a second."""
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
    # Forward, and twice as much backward.
    row_tokens = (ROW_QUESTION + settings.answer_tokens) * 3 * (CHECKPOINTING if checkpointing else 1)
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
