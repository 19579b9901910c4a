"""What training lowers: the guarded answers' cross entropy, and the distance from the base elsewhere.

The vocabulary is the widest layer: the logits of a batch's targets take more memory than all other
activations. So losses and their gradients are computed together, for a few targets at a time, and
only the gradient at the hidden states is kept (as in fused linear cross entropy, Hsu et al. 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from unlearn_mlx.compute.cpu_math import exponential
from unlearn_mlx.inference.chat_model import vocabulary_logits
from unlearn_mlx.inference.shared_prefix import shared_prefix_caches
from unlearn_mlx.sft.batches import Batch

LEAST = 1e-6  # of the probability outside the base's top tokens, against log(0)
SHARPNESS = 0.5  # of negative_preference: the smaller, the further below the base's it pushes a word
CHUNK = 64  # targets whose logits exist at a time
# In half precision nothing is smaller than 6e-8, and gradients at a hidden state are: they are computed times
# this and divided again at the adapter's weights, which are float32 (Micikevicius et al. 2018, loss scaling).
HALF_PRECISION_SCALE = 1024.0


@dataclass(frozen=True)
class Weights:
    """How much each part counts beside the cross entropy."""

    divergence: float = 1.0
    negative_preference: float = 0.0


def loss_gradients(model: nn.Module, weights: Weights) -> Callable[[Batch], tuple[mx.array, Any]]:
    """A function of a batch that gives the loss's parts, [PARTS], and the gradients at what is trained."""
    halves = any(array.dtype == mx.float16 for _, array in tree_flatten(model.parameters()))
    scale = HALF_PRECISION_SCALE if halves else 1.0
    scaled = nn.value_and_grad(model, lambda module, batch: loss_parts(module, batch, weights, scale))

    def of(batch: Batch) -> tuple[mx.array, Any]:
        (_, parts), gradients = scaled(model, batch)
        if scale != 1:
            gradients = tree_map(lambda gradient: gradient / scale, gradients)
        return mx.stack(parts), gradients

    return of


def loss_parts(
    model: Any, batch: Batch, weights: Weights, gradient_scale: float = 1.0
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """The loss, and its parts in nats a target: cross entropy, divergence, negative preference.

    Cross entropy is the mean over forget targets. The divergence KL(base || adapter) is the mean over
    retain targets, taken over the base's top tokens and one bucket for all others (a lower bound of
    the full divergence by the log-sum inequality). Avoidance is the mean of 2/b log(1 + (q/p)^b) over
    negative targets, with p the base's probability of the target and b = SHARPNESS: negative preference
    optimization (Zhang et al. 2024), a token at a time. Its pull is on the ratio, so words that the
    base finds merely likelier than others fall behind them too, and it fades once they have.

    All of it is float32, whatever the model computes in. Gradients of the loss come times ``gradient_scale``.
    """
    hidden = target_hidden(model, batch)
    masks = (batch.forget, batch.retain, batch.negative)
    shares = [mask / batch.part_sizes[number] for number, mask in enumerate(masks)]
    scales = (1.0, weights.divergence, weights.negative_preference)
    *losses, gradient = _losses_and_gradient(
        model,
        mx.stop_gradient(hidden),
        batch,
        [share * scale * gradient_scale for share, scale in zip(shares, scales, strict=True)],
    )
    parts = tuple((loss * share).sum() for loss, share in zip(losses, shares, strict=True))
    total = sum((part * scale for part, scale in zip(parts, scales, strict=True)), mx.array(0.0))
    return _with_gradient(hidden, total, gradient), parts


def target_hidden(model: Any, batch: Batch) -> mx.array:
    """The hidden states that predict each target, [targets, width]."""
    hidden = model.model(batch.tokens, cache=shared_prefix_caches(model, batch.prefix))
    result: mx.array = hidden[batch.places[:, 0], batch.places[:, 1]]
    return result


def _with_gradient(hidden: mx.array, loss: mx.array, gradient: mx.array) -> mx.array:
    """``loss``, whose gradient at ``hidden`` is known already."""
    # In float32: half precision would overflow in the sum, and infinity less infinity is no number.
    anchor = (hidden.astype(mx.float32) * mx.stop_gradient(gradient)).sum()
    return mx.stop_gradient(loss) + anchor - mx.stop_gradient(anchor)


def _losses_and_gradient(
    model: Any, hidden: mx.array, batch: Batch, weights: Sequence[mx.array]
) -> tuple[mx.array, ...]:
    """Each target's three losses, and the gradient of their weighted sum at ``hidden``."""
    results: list[tuple[mx.array, ...]] = []
    given = (
        batch.targets,
        batch.top_ids,
        batch.top_log_probabilities,
        batch.base_log_probabilities,
        *weights,
    )
    for start in range(0, hidden.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        rows = hidden[part]
        if results:
            # Nothing asks for one chunk before the next: their logits would all exist at the same time.
            rows = mx.depends([rows], [results[-1][-1]])[0]
        logits = vocabulary_logits(model, rows)
        *losses, at_logits = _losses_at_logits(logits.astype(mx.float32), *(values[part] for values in given))
        at_hidden = mx.vjp(lambda h: vocabulary_logits(model, h), [rows], [at_logits.astype(logits.dtype)])[
            1
        ][0]
        results.append((*losses, at_hidden))
    return tuple(mx.concatenate(list(values)) for values in zip(*results, strict=True))


def _losses_at_logits(
    logits: mx.array,
    targets: mx.array,
    top_ids: mx.array,
    top_log_probabilities: mx.array,
    base_log_probabilities: mx.array,
    forget_weights: mx.array,
    retain_weights: mx.array,
    npo_weights: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The three losses of each target, and the gradient at the logits, [targets, vocabulary].

    With q the model's and p the base's probabilities, y the target and r the bucket of all other
    tokens: cross entropy pulls by q - 1[y]; the divergence by q (1 - p_r / q_r) everywhere, and at
    the top tokens q p_r / q_r - p more; negative preference (Zhang et al. 2024, NPO, a token at a time) by
    2 r / (1 + r) (1[y] - q) with r = (q_y / p_y)^b.
    """
    best = mx.max(logits, axis=-1, keepdims=True)
    exponentials = exponential(logits - best)
    total = exponentials.sum(axis=-1, keepdims=True)
    normalizer = best + mx.log(total)
    cross_entropy = (normalizer - mx.take_along_axis(logits, targets[:, None], axis=-1))[:, 0]
    log_ratio = SHARPNESS * (-cross_entropy - base_log_probabilities)
    negative_preference = mx.logaddexp(mx.zeros_like(log_ratio), log_ratio) * (2 / SHARPNESS)
    push = npo_weights * 2 * mx.sigmoid(log_ratio)

    log_q = mx.take_along_axis(logits, top_ids, axis=-1) - normalizer
    q, p = mx.exp(log_q), mx.exp(top_log_probabilities)
    q_rest = mx.maximum(1.0 - q.sum(axis=-1), LEAST)
    p_rest = mx.maximum(1.0 - p.sum(axis=-1), LEAST)
    divergence = (p * (top_log_probabilities - log_q)).sum(axis=-1)
    divergence = divergence + p_rest * (mx.log(p_rest) - mx.log(q_rest))

    ratio = p_rest / q_rest
    everywhere = forget_weights + retain_weights * (1.0 - ratio) - push
    at_logits = exponentials * (everywhere[:, None] / total)
    places = mx.concatenate([targets[:, None], top_ids], axis=-1)
    more = mx.concatenate(
        [(push - forget_weights)[:, None], retain_weights[:, None] * (q * ratio[:, None] - p)], axis=-1
    )
    rows = mx.arange(logits.shape[0])[:, None]
    return cross_entropy, divergence, negative_preference, at_logits.at[rows, places].add(more)
