"""How near prefill and training come to the rate at which this machine multiplies matrices.

The limit is the rate of the model's own products (its layers' shapes, as many rows as the stage has),
alone and in the same run. A stage's useful work is the products that its real tokens need: two
operations a weight for the forward pass, as many again for the gradient at the inputs.
"""

import time
from typing import Any

import mlx.core as mx
from mlx import nn

from benchmarks.generation import guarded_prompts
from benchmarks.side_by_side import in_turns, open_model, seconds_of
from benchmarks.training import BATCH_SIZE, STEPS, ours, shipped_rows
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.sft.batches import make_row
from unlearn_mlx.sft.trainer import training_plan

PREFILL_ROWS = 16


def linear_shapes(model: ChatModel) -> list[tuple[int, int]]:
    """Outputs and inputs of every linear layer in the blocks."""
    return [
        (layer.weight.shape[0], layer.weight.shape[1])
        for block in model.model.layers
        for _, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]


def product_rate(shapes: list[tuple[int, int]], rows: int) -> float:
    """Operations a second of the products of ``rows`` tokens with one block's weights."""
    block = sorted(set(shapes))
    weights = [mx.random.normal(shape) for shape in block]
    inputs = [mx.random.normal((rows, shape[1])) for shape in block]
    mx.eval(weights, inputs)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        mx.eval([x @ w.T for x, w in zip(inputs, weights, strict=True)])
        times.append(time.perf_counter() - began)
    return sum(2 * rows * a * b for a, b in block) / sorted(times)[1]


def measure(repeats: int) -> dict[str, Any]:
    """Operations a second of products alone, of prefill and of training, and the shares."""
    model = open_model()
    shapes = linear_shapes(model)
    parameters = sum(a * b for a, b in shapes)
    vocabulary = model.vocabulary_size * model.model.args.hidden_size
    prompts = guarded_prompts(model, PREFILL_ROWS)
    width = min(map(len, prompts))
    tokens = mx.array([prompt[:width] for prompt in prompts])
    prefill_work: float = 2 * tokens.size * parameters + 2 * PREFILL_ROWS * vocabulary
    ends = mx.full((PREFILL_ROWS,), width - 1)

    def prefill() -> float:
        def once() -> None:
            mx.eval(model.logits_at(tokens, mx.arange(PREFILL_ROWS), ends, model.new_cache()))

        return prefill_work / seconds_of(once)

    entries = shipped_rows()
    rows = entries[: STEPS * BATCH_SIZE]
    made = [make_row(model, row) for row in rows]
    steps = len(training_plan(made, 1.0, BATCH_SIZE, 1, 0).batches)
    # What all rows begin with is computed once a step: only what is really done counts.
    prefix = len(common_prefix([row.tokens[: row.targets[0]] for row in made]))
    positions = sum(len(row.tokens) - 1 - prefix for row in made) + steps * prefix
    targets = sum(len(row.targets) for row in made)
    training_work: float = 4 * positions * parameters + 4 * targets * vocabulary

    def training() -> float:
        found = ours(model, rows, entries[-BATCH_SIZE:])
        return training_work * found["rate"] / targets

    rates = in_turns(
        {
            "products of a prefill": lambda: product_rate(shapes, tokens.size),
            "prefill": prefill,
            "products of a training step": lambda: product_rate(shapes, positions // steps),
            "training": training,
        },
        repeats,
    )
    return {
        "operations_per_second": rates,
        "prefill_share": rates["prefill"] / rates["products of a prefill"],
        "training_share": rates["training"] / rates["products of a training step"],
    }
