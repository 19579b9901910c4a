"""How far an adapter takes the model's predictions from the base's, token by token."""

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.cpu_math import exponential, log_sum_exp
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.inference.adapters import Adapter, LoraLayers, lora_layers, with_lora_layers
from unlearn_mlx.inference.chat_model import ChatModel, in_chunks

ROWS_AT_ONCE = 4


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
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Mean KL(base || adapter) a token of each text after its prompt, over the whole vocabulary.

    ``adapter`` is attached to the model and is left switched on.

    Raises:
        Cancelled: between two batches, once ``is_cancelled`` returns True.
    """
    adapter.switch(True)
    layers = lora_layers(model.model)
    adapter.switch(False)
    pairs = list(zip(prompts, texts, strict=True))
    batches = [pairs[start : start + ROWS_AT_ONCE] for start in range(0, len(pairs), ROWS_AT_ONCE)]
    try:
        found = (workers or ALONE).map(_divergences, model, batches, (layers,), is_cancelled)
    finally:
        adapter.switch(True)
    return [value for values in found for value in values]


def _divergences(
    model: ChatModel,
    batches: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    layers: LoraLayers,
) -> Generator[list[float], None, None]:
    for batch in batches:
        rows = [[*prompt, *text] for prompt, text in batch]
        longest = max(map(len, rows))
        tokens = mx.array([row + [0] * (longest - len(row)) for row in rows])
        row_index = mx.array([r for r, (_, text) in enumerate(batch) for _ in text])
        columns = mx.array([len(prompt) - 1 + k for prompt, text in batch for k in range(len(text))])
        base = model.states_at(tokens, row_index, columns)
        mx.eval(base)
        with with_lora_layers(model.model, layers):
            changed = model.states_at(tokens, row_index, columns)
            (values,) = in_chunks(
                lambda one, other: (kl_divergence(model.head(one), model.head(other)),), base, changed
            )
        ends = np.cumsum([len(text) for _, text in batch])
        # Rounding can leave a tiny negative number where both are alike.
        yield [max(0.0, float(part.mean())) for part in np.split(values, ends[:-1])]
