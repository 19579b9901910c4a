"""The memory planner against mlx's own count of its peak: SmolLM2, and random Llamas of several shapes.

``python -m benchmarks.planner [SHAPE ...]`` prints JSON. The rows and prompts are a real run's; each part is
measured by itself, and the plan is for the same settings and the same device.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx_lm.models import llama

from benchmarks.side_by_side import ROWS, open_model, peak_bytes_of, shipped_questions
from unlearn_mlx.compute.batch_size import BATCH_SIZES
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.planner import ModelShape, plan, shape_from
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.evaluation.divergence import ROWS_AT_ONCE, divergence_from_base
from unlearn_mlx.evaluation.side_effects import NEUTRAL_TOKENS
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.runs.records import TrainingRow, read_records
from unlearn_mlx.sft.batches import batch_order, make_batch, make_row
from unlearn_mlx.sft.loss import Weights, loss_parts
from unlearn_mlx.synthetic_data.guardrail import guarded_messages, hint_for

STEPS = 3  # the optimizer's state is there from the first one on
DECODED = 6  # tokens: the caches are as large as for a whole answer

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


def random_llama(tokenizer: Any, source: Any, shape: Sequence[int]) -> tuple[ChatModel, ModelShape]:
    """A Llama of a shape with random weights, and a tokenizer whose ids it has."""
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
    mx.eval(model.parameters())
    return ChatModel(model, tokenizer, source), shape_from(configuration, 0)


def generation_peak(model: ChatModel, settings: Settings) -> int:
    """Guarded answers, more than fit at a time, in the widest batch."""
    model.decode_batch_size = BATCH_SIZES[-1]
    requests = []
    for number, question in enumerate((shipped_questions() * 2)[: BATCH_SIZES[-1] * 3 // 2]):
        messages = guarded_messages(question, "Harry Potter", 0, hint_for(question, str(number), 0))
        tokens = tuple(model.chat_tokens(messages))
        requests.append(Request(str(number), tokens, DECODED, settings.temperature))
    return peak_bytes_of(lambda: generate(model, requests, 0))


def training_peak(model: ChatModel, settings: Settings) -> int:
    """Some steps on the shipped rows, the widest batch among them."""
    entries = read_records(ROWS / "dataset" / "train.jsonl", TrainingRow)
    rows = [make_row(model, entry) for entry in entries]
    prefix = common_prefix([row.tokens[: row.targets[0]] for row in rows if row.targets])
    batches = batch_order(rows, settings.batch_size, 0, 0)
    batches.sort(key=lambda batch: -max(len(rows[i].tokens) for i in batch))
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, 1000))
    optimizer = optimizers.Adam(learning_rate=1e-4)
    gradients_of = nn.value_and_grad(model.model, lambda m, b: loss_parts(m, b, Weights(1.0, 1.0))[0])

    def steps() -> None:
        model.model.train()
        for chosen in batches[:STEPS]:
            batch = make_batch([rows[i] for i in chosen], [None] * len(chosen), prefix)
            loss, gradients = gradients_of(model.model, batch)
            gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
            optimizer.update(model.model, gradients)
            mx.eval(model.model.trainable_parameters(), optimizer.state, loss)
        model.model.eval()

    peak = peak_bytes_of(steps)
    adapter.detach()
    return peak


def evaluation_peak(model: ChatModel, settings: Settings) -> int:
    """The step of the evaluation that holds most: two sets of logits over the whole vocabulary."""
    prompt = model.chat_tokens([{"role": "user", "content": "Explain how rain forms."}])
    text = model.text_tokens("Rain forms where warm, moist air rises and cools. " * 20)[:NEUTRAL_TOKENS]
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, 1000))
    mx.eval(model.model.parameters())
    count = ROWS_AT_ONCE
    peak = peak_bytes_of(lambda: divergence_from_base(model, adapter, [prompt] * count, [text] * count))
    adapter.detach()
    return peak


def compared(model: ChatModel, shape: ModelShape) -> dict[str, Any]:
    """Measured and planned bytes of each part, weights included, and how far the plan's peak is off."""
    settings = make_settings("standard")
    planned = plan(shape, settings, current_device(), 1e11)
    parts: dict[str, tuple[Callable[[ChatModel, Settings], int], int]] = {
        "generation": (generation_peak, planned.generation),
        "training": (training_peak, planned.training),
        "evaluation": (evaluation_peak, planned.evaluation),
    }
    measured = {name: measure_part(model, settings) for name, (measure_part, _) in parts.items()}
    expected = {name: planned.weights + bytes_ for name, (_, bytes_) in parts.items()}
    highest = max(measured.values())
    return {
        "weights": [mx.get_active_memory(), planned.weights],
        **{name: [measured[name], expected[name]] for name in parts},
        "peak": [highest, planned.memory],
        "off": round(planned.memory / highest - 1, 3),
    }


def measure(repeats: int = 1, shapes: Sequence[str] = ()) -> dict[str, Any]:
    """[measured, planned] bytes by model and part: of the named random shapes, or of all and SmolLM2.

    Memory does not vary: ``repeats`` is not needed.
    """
    chosen = {name: RANDOM_SHAPES.get(name) or HELD_OUT_SHAPES[name] for name in shapes}
    model = open_model()
    tokenizer, source = model.tokenizer, model.source
    configuration = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    result = {} if chosen else {"SmolLM2-135M": compared(model, shape_from(configuration, 0))}
    del model
    for name, numbers in (chosen or {**RANDOM_SHAPES, **HELD_OUT_SHAPES}).items():
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        result[name] = compared(*random_llama(tokenizer, source, numbers))
    return result


if __name__ == "__main__":
    print(json.dumps(measure(shapes=sys.argv[1:]), indent=2))
