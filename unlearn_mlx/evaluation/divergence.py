"""How far an adapter takes the model's predictions from the base's, token by token."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.cpu_math import exponential, log_sum_exp
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.inference.adapters import Adapter, LoraLayers, lora_layers, with_lora_layers
from unlearn_mlx.inference.chat_model import ChatModel

ROWS_AT_ONCE = 4  # two sets of logits over the whole vocabulary lie in memory


def kl_divergence(base_logits: mx.array, logits: mx.array) -> mx.array:
    """KL(base || other) of next-token distributions in nats, [..., vocabulary] to [...]."""
    base = base_logits.astype(mx.float32)
    other = logits.astype(mx.float32)
    base = base - log_sum_exp(base)[..., None]
    other = other - log_sum_exp(other)[..., None]
    return mx.sum(exponential(base) * (base - other), axis=-1)


def divergence_from_base(
    model: ChatModel,
    adapter: Adapter,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    workers: WorkerPool | None = None,
) -> list[float]:
    """Mean KL(base || adapter) a token of each text after its prompt, over the whole vocabulary.

    ``adapter`` is attached to the model and is left switched on.
    """
    adapter.switch(True)
    layers = lora_layers(model.model)
    adapter.switch(False)
    try:
        found = (workers or ALONE).map(
            _divergences,
            model,
            range(len(texts)),
            lambda part: ([prompts[i] for i in part], [texts[i] for i in part], layers),
        )
    finally:
        adapter.switch(True)
    return [found[i] for i in range(len(texts))]


def _divergences(
    model: ChatModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], layers: LoraLayers
) -> list[float]:
    means: list[float] = []
    for start in range(0, len(texts), ROWS_AT_ONCE):
        chosen = range(start, min(start + ROWS_AT_ONCE, len(texts)))
        rows = [[*prompts[i], *texts[i]] for i in chosen]
        longest = max(map(len, rows))
        batch = mx.array([row + [0] * (longest - len(row)) for row in rows])
        row_index = mx.array([r for r, i in enumerate(chosen) for _ in texts[i]])
        columns = mx.array([len(prompts[i]) - 1 + k for i in chosen for k in range(len(texts[i]))])
        base_logits = model.logits_at(batch, row_index, columns)
        mx.eval(base_logits)
        with with_lora_layers(model.model, layers):
            values = np.array(kl_divergence(base_logits, model.logits_at(batch, row_index, columns)))
        position = 0
        for i in chosen:
            # Rounding can leave a tiny negative number where both are alike.
            means.append(max(0.0, float(values[position : position + len(texts[i])].mean())))
            position += len(texts[i])
    return means
