"""Bytes at the highest point of each part of a run, beside the weights.

They follow from the model's shape; how many arrays of each kind exist at the same time was fitted by
``python -m benchmarks.planner``, in float32 and in half precision, on other shapes than those of its test.
"""

from dataclasses import dataclass

from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.config import Settings

# Lengths are counted in tokens. The prompts are the guardrail's and the chat template's.
GUARDED_PREFIX = 178  # what guarded prompts share
GUARDED_REST = 41  # the longest question and hint behind it
CACHE_STEP = 64  # caches grow by so many tokens at once
ROW_PREFIX = 24  # what training rows share
ROW_QUESTION = 24  # the longest question of a row; its answer comes on top
LOGITS_CHUNK = 64  # targets whose logits training computes at a time
COMPARED_PLACES = 128  # tokens whose distributions the evaluation compares at once

# Arrays that exist at the same time, fitted. Those of one layer of a prompt: widths, feed-forward widths,
# attention scores; and logits of one token a row.
PROMPT_WIDTHS, PROMPT_FEED_FORWARDS, PROMPT_SCORES, PROMPT_LOGITS = 5, 6, 8, 2
KEPT_LOGITS = 22  # of a chunk of targets
COMPARED_LOGITS = 19.3  # of the evaluation's tokens
ADAPTER_COPIES = 4  # weights, gradients and Adam's two means


@dataclass(frozen=True)
class Kept:
    """Arrays that a layer keeps for the way back, a token: widths, feed-forward widths; scores a head."""

    widths: float
    feed_forwards: float
    scores: float


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest point of a part of a run, beside the weights."""

    caches: int = 0  # keys and values
    activations: int = 0
    optimizer: int = 0  # the adapter, its gradients, and Adam's means

    @property
    def total(self) -> int:
        """All of it."""
        return self.caches + self.activations + self.optimizer


# By the bytes of a number. The adapter is float32: where the model computes in half precision, the inputs of
# its products are kept in both, those of six products of a layer's width and one of the feed-forward's.
KEPT = {4: Kept(6, 2.5, 2), 2: Kept(12, 4.5, 2)}
# With gradient checkpointing: widths that are kept between two layers, and the one layer on its way back.
BETWEEN_LAYERS = 1.0
LAYERS_ON_THEIR_WAY = 1.0


def generation_peak(shape: ModelShape, settings: Settings, number_bytes: int, rows: int) -> Peak:
    """Of so many answers at once: keys and values of a full batch, and one layer of its prompts."""
    token = PROMPT_WIDTHS * shape.hidden_size + PROMPT_FEED_FORWARDS * shape.feed_forward
    scores = PROMPT_SCORES * shape.heads * (GUARDED_PREFIX + GUARDED_REST)
    prompts = rows * GUARDED_REST * (token + scores) * number_bytes
    logits = PROMPT_LOGITS * rows * shape.vocabulary * 4
    first = Peak(_caches(shape, rows, GUARDED_REST) * number_bytes, prompts + logits)
    last = Peak(_caches(shape, rows, GUARDED_REST + settings.answer_tokens) * number_bytes, logits)
    return max(first, last, key=lambda peak: peak.total)


def training_peak(
    shape: ModelShape,
    settings: Settings,
    number_bytes: int,
    rows: int | None = None,
    checkpointing: bool = False,
) -> Peak:
    """Of a step, ``rows`` of it at once: what is kept for the way back, logits, adapter and optimizer.

    ``rows`` None is the whole step; a batch may have one more row than the settings say.
    """
    all_rows = settings.batch_size + 1
    at_once = all_rows if rows is None else min(rows, all_rows)
    width = ROW_QUESTION + settings.answer_tokens
    tokens = at_once * width + ROW_PREFIX
    scores = at_once * shape.heads * width * (ROW_PREFIX + width)

    def layer(kept: Kept) -> float:
        token = kept.widths * shape.hidden_size + kept.feed_forwards * shape.feed_forward
        return tokens * token + kept.scores * scores

    if checkpointing:
        between = shape.layers * tokens * BETWEEN_LAYERS * shape.hidden_size
        numbers = between + LAYERS_ON_THEIR_WAY * layer(KEPT[number_bytes])
    else:
        numbers = shape.layers * layer(KEPT[number_bytes])
    logits = KEPT_LOGITS * LOGITS_CHUNK * shape.vocabulary * 4
    # The sum of the parts' gradients is one copy more.
    copies = ADAPTER_COPIES + (at_once < all_rows)
    adapter = copies * settings.rank * shape.adapter_sides * 4
    return Peak(activations=int(numbers * number_bytes + logits), optimizer=adapter)


def evaluation_peak(shape: ModelShape) -> Peak:
    """Of the step that holds most: two sets of logits over the whole vocabulary."""
    return Peak(activations=int(COMPARED_LOGITS * COMPARED_PLACES * shape.vocabulary * 4))


def _caches(shape: ModelShape, rows: int, own_tokens: int) -> int:
    """Numbers of keys and values: of the shared prefix once, and of each row's own tokens."""
    own = -(-own_tokens // CACHE_STEP) * CACHE_STEP
    return (GUARDED_PREFIX + rows * own) * shape.layers * 2 * shape.key_values
