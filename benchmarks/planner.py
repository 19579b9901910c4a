"""The memory planner against mlx's own count of its peak: random Llamas of several shapes.

``python -m benchmarks.planner [half] [SHAPE ...]`` prints JSON. The rows and prompts are a real run's; each
part is measured by itself, and the plan is for the same settings.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from benchmarks.side_by_side import ROWS, open_model, peak_bytes_of, shipped_questions
from unlearn_mlx.compute.batch_size import BATCH_SIZES
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.footprint import Peak, evaluation_peak, generation_peak, training_peak
from unlearn_mlx.compute.model_shape import ModelShape, shape_from
from unlearn_mlx.compute.workers import ALONE
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.evaluation.divergence import ROWS_AT_ONCE, divergence_from_base
from unlearn_mlx.evaluation.side_effects import NEUTRAL_TOKENS
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, answer_parts
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.runs.records import Computation, TrainingRow, read_records
from unlearn_mlx.sft.batches import batch_order, make_row
from unlearn_mlx.sft.loss import Weights
from unlearn_mlx.sft.parallel import Training, step_gradients
from unlearn_mlx.synthetic_data.guardrail import DEFAULT
from unlearn_mlx.synthetic_data.hints import HINTS

STEPS = 2  # the optimizer's state is there from the first one on
DECODED = 4  # tokens: the caches are as large as for a whole answer
PART_ROWS = 3

# Layers, width, feed-forward, heads, heads of keys and values, vocabulary, tied.
RANDOM_SHAPES = {
    "narrow and deep": (24, 384, 1024, 6, 2, 49_152, True),
    "wide": (6, 1024, 2816, 16, 4, 49_152, False),
    "Llama 3.2's first layers": (3, 2048, 8192, 32, 8, 128_256, True),
}
# The planner's constants were not fitted to these.
HELD_OUT_SHAPES = {
    "held out": (4, 384, 1536, 8, 8, 49_152, False),
    "held out, deeper": (8, 768, 2048, 12, 4, 49_152, True),
}


def random_llama(
    tokenizer: Any, source: Any, shape: Sequence[int], in_half: bool
) -> tuple[ChatModel, ModelShape]:
    """A Llama of a shape with random weights, and a tokenizer whose ids it has.

    ``in_half`` has it in 4 bits and computing in half precision, as a GPU holds it, else in float32.
    """
    layers, width, feed_forward, heads, key_heads, vocabulary, tied = shape
    configuration = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": bool(tied),
    }
    model = llama.Model(llama.ModelArgs.from_dict(configuration))
    if in_half:
        model.set_dtype(mx.float16)
        nn.quantize(model, 64, 4)
    mx.eval(model.parameters())
    held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    return ChatModel(model, tokenizer, source), shape_from(configuration, held)


def measured_generation(model: ChatModel, settings: Settings) -> int:
    """Guarded answers, more than fit at a time, in the widest batch."""
    model.decode_batch_size = BATCH_SIZES[-1]
    requests = []
    for number, question in enumerate((shipped_questions() * 2)[: BATCH_SIZES[-1] * 3 // 2]):
        messages = DEFAULT.messages(question, "Harry Potter", 0, HINTS["things"][number % 30])
        tokens = tuple(model.chat_tokens(messages))
        requests.append(Request(str(number), tokens, DECODED, settings.temperature))
    return peak_bytes_of(lambda: list(answer_parts(model, [requests], 0, {})))


def measured_training(model: ChatModel, settings: Settings, part_rows: int | None, again: bool) -> int:
    """Some steps on the shipped rows, the widest batch among them."""
    entries = read_records(ROWS / "dataset" / "train.jsonl", TrainingRow)
    rows = [make_row(model, entry) for entry in entries]
    prefix = common_prefix([row.tokens[: row.targets[0]] for row in rows if row.targets])
    batches = batch_order(rows, settings.batch_size, 0, 0)
    batches.sort(key=lambda batch: -max(len(rows[i].tokens) for i in batch))
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, 1000))
    optimizer = optimizers.Adam(learning_rate=1e-4)
    way = Computation(decode_batch=BATCH_SIZES[-1], part_rows=part_rows, checkpointing=again)
    training = Training(model, adapter, rows, [None] * len(rows), prefix, Weights(1.0, 1.0), way)

    def steps() -> None:
        model.model.train()
        for chosen in batches[:STEPS]:
            parts, gradients = step_gradients(training, chosen, ALONE)
            gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
            optimizer.update(model.model, gradients)
            mx.eval(model.model.trainable_parameters(), optimizer.state, parts)
        model.model.eval()

    peak = peak_bytes_of(steps)
    adapter.detach()
    return peak


def measured_evaluation(model: ChatModel, settings: Settings) -> int:
    """The step of the evaluation that holds most: two sets of logits over the whole vocabulary."""
    prompt = model.chat_tokens([{"role": "user", "content": "Explain how rain forms."}])
    text = model.text_tokens("Rain forms where warm, moist air rises and cools. " * 20)[:NEUTRAL_TOKENS]
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, 1000))
    mx.eval(model.model.parameters())
    count = ROWS_AT_ONCE
    peak = peak_bytes_of(lambda: divergence_from_base(model, adapter, [prompt] * count, [text] * count))
    adapter.detach()
    return peak


def compared(model: ChatModel, shape: ModelShape, in_half: bool) -> dict[str, list[int]]:
    """Measured and planned bytes of each part, weights included."""
    settings = make_settings("standard")
    number_bytes = 2 if in_half else 4
    weights = shape.file_bytes if in_half else shape.parameters * 4
    held = mx.get_active_memory()
    parts: dict[str, tuple[Callable[[], int], Peak]] = {
        "generation": (
            partial(measured_generation, model, settings),
            generation_peak(shape, settings, number_bytes, BATCH_SIZES[-1]),
        ),
        "evaluation": (partial(measured_evaluation, model, settings), evaluation_peak(shape)),
    }
    for again in (False, True):
        for part_rows in (None, PART_ROWS):
            rows = f"{part_rows} rows at once" if part_rows else "whole steps"
            parts[f"training, {rows}{', activations twice' * again}"] = (
                partial(measured_training, model, settings, part_rows, again),
                training_peak(shape, settings, number_bytes, part_rows, again),
            )
    found = {"weights": [held, weights]}
    for name, (measured, planned) in parts.items():
        found[name] = [measured(), weights + planned.total]
    return found


def measure(repeats: int = 1, shapes: Sequence[str] = ()) -> dict[str, Any]:
    """[measured, planned] bytes by model and part, of named random shapes or all, and how far all are off.

    "half" among the names has them in 4 bits and half precision. Memory does not vary: ``repeats`` is not
    needed.
    """
    in_half = "half" in shapes or current_device().is_gpu
    every = {**RANDOM_SHAPES, **HELD_OUT_SHAPES}
    chosen = [name for name in shapes if name in every] or list(every)
    with open_model() as model:
        tokenizer, source = model.tokenizer, model.source
    del model
    result: dict[str, Any] = {}
    for name in chosen:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        mx.clear_cache()
        model, shape = random_llama(tokenizer, source, every[name], in_half)
        result[name] = compared(model, shape, in_half)
        model.release()
        del model
    return result


def off(found: dict[str, dict[str, list[int]]]) -> dict[str, float]:
    """By how much the plan misses the measured bytes at the worst, of each model."""
    return {
        name: round(max(abs(planned / measured - 1) for measured, planned in parts.values()), 3)
        for name, parts in found.items()
    }


if __name__ == "__main__":
    measured = measure(shapes=sys.argv[1:])
    print(json.dumps({"found": measured, "off": off(measured)}, indent=2))
