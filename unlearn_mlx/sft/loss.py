"""What training lowers: the guarded answers' cross entropy, and the distance from the base elsewhere."""

from typing import Any

import mlx.core as mx

from unlearn_mlx.language_model.chat_model import vocabulary_logits
from unlearn_mlx.language_model.exponential import log_sum_exp
from unlearn_mlx.language_model.prefixes import shared_prefix_caches
from unlearn_mlx.sft.batches import Batch

LEAST = 1e-6  # of the probability outside the base's top tokens, against log(0)


def loss_parts(model: Any, batch: Batch) -> tuple[mx.array, mx.array]:
    """Mean cross entropy over forget targets, and mean KL(base || adapter) over retain targets, in nats."""
    logits = target_logits(model, batch)
    normalizer = log_sum_exp(logits)
    chosen = mx.take_along_axis(logits, batch.targets[:, None], axis=-1)[:, 0]
    cross_entropy = (normalizer - chosen) * batch.forget
    divergence = top_divergence(
        mx.take_along_axis(logits, batch.top_ids, axis=-1) - normalizer[:, None], batch.top_log_probabilities
    )
    return (
        cross_entropy.sum() / mx.maximum(batch.forget.sum(), 1.0),
        (divergence * batch.retain).sum() / mx.maximum(batch.retain.sum(), 1.0),
    )


def target_logits(model: Any, batch: Batch) -> mx.array:
    """Logits that predict each target, [targets, vocabulary] in float32."""
    hidden = model.model(batch.tokens, cache=shared_prefix_caches(model, batch.prefix))
    return vocabulary_logits(model, hidden[batch.places[:, 0], batch.places[:, 1]]).astype(mx.float32)


def top_divergence(log_probabilities: mx.array, base_log_probabilities: mx.array) -> mx.array:
    """KL(base || model) over the base's top tokens and one bucket for all others, [places].

    A lower bound of the full divergence, by the log-sum inequality; both inputs are [places, TOP].
    """
    base = mx.exp(base_log_probabilities)
    base_rest = mx.maximum(1.0 - base.sum(axis=-1), LEAST)
    rest = mx.maximum(1.0 - mx.exp(log_probabilities).sum(axis=-1), LEAST)
    top = (base * (base_log_probabilities - log_probabilities)).sum(axis=-1)
    return top + base_rest * (mx.log(base_rest) - mx.log(rest))


def avoid_loss(model: Any, batch: Batch, base_log_likelihood: mx.array, beta: float = 0.1) -> mx.array:
    """Negative preference optimisation (Zhang et al. 2024) of the base's own answers, mean over rows.

    -2/beta * log sigmoid(-beta * (log p_adapter - log p_base)), per row's answer.
    """
    logits = target_logits(model, batch)
    chosen = mx.take_along_axis(logits, batch.targets[:, None], axis=-1)[:, 0] - log_sum_exp(logits)
    rows = batch.tokens.shape[0]
    # Padded targets weigh nothing, whatever row they are counted to.
    likelihood = mx.zeros((rows,)).at[batch.places[:, 0]].add(chosen * batch.forget)
    ratio = likelihood - base_log_likelihood
    return (2 / beta) * mx.logaddexp(mx.zeros_like(ratio), beta * ratio).mean()
