"""What ``benchmarks.device`` times inside a stage: a decoding step, one layer's attention, training steps."""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx_lm.tuner import trainer as stock

from benchmarks.generation import guarded_prompts
from benchmarks.side_by_side import peak_bytes_of, seconds_of
from benchmarks.training import settings_for, shipped_rows
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.sampling import draw_token, draw_tokens
from unlearn_mlx.inference.shared_prefix import attention
from unlearn_mlx.seeding import random_source
from unlearn_mlx.sft.batches import Row, make_row, part_sizes, prefix_of
from unlearn_mlx.sft.compiled import optimizer_step
from unlearn_mlx.sft.loss import Weights
from unlearn_mlx.sft.parallel import Training
from unlearn_mlx.sft.trainer import training_plan

PREFIX, OWN = 178, 40  # tokens of a guarded prompt that are shared, and a row's own
REPEATS = 10
EVERYTHING = 10**6  # layers


def milliseconds(work: Callable[[], Any]) -> float:
    """The median of several, the first of which compiles."""
    mx.eval(work())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        mx.eval(work())
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def decoding_step(model: ChatModel, rows: int) -> dict[str, float]:
    """Milliseconds of one token a row behind 178 others: shared, kept by each row; and of drawing."""
    prefix = mx.array(guarded_prompts(model, 1)[0][:PREFIX])
    index = mx.arange(rows)
    found = {}

    def step(cache: Sequence[Any]) -> mx.array:
        tokens = mx.zeros((rows, 1), mx.int32)
        return model.logits_at(tokens, index, mx.zeros_like(index), cache)

    for name, copied in (("shared", False), ("copied", True)):
        caches = model.caches_behind(prefix, rows, copied)
        found[f"layers, prefix {name}"] = milliseconds(partial(step, caches))
    logits = mx.random.normal((rows, model.vocabulary_size)).astype(mx.float16)
    mx.eval(logits)
    sources = [random_source(0, str(row)) for row in range(rows)]

    def draw_here() -> list[int]:
        scores = np.array(logits.astype(mx.float32), copy=False)
        return [draw_token(row, 0.8, 0.05, source) for row, source in zip(scores, sources, strict=True)]

    draw_here()
    found["drawing on the host"] = 1000 * min(seconds_of(draw_here) for _ in range(REPEATS))
    found["drawing on the device"] = milliseconds(
        lambda: draw_tokens(logits, [0.8] * rows, [0.05] * rows, sources)
    )
    found["argmax on the device"] = milliseconds(lambda: mx.argmax(logits, axis=-1))
    return found


def attention_ways(model: ChatModel, rows: int, length: int) -> dict[str, float]:
    """Microseconds of one layer's attention for so many tokens a row, behind a shared prefix.

    Where there are several, as in scoring and training, the gradient at the queries is timed as well.
    """
    arguments = model.model.args
    heads, groups = arguments.num_attention_heads, arguments.num_key_value_heads
    width = arguments.hidden_size // heads
    dtype = model.model.model.norm.weight.dtype

    def random(*shape: int) -> mx.array:
        return mx.random.normal(shape).astype(dtype)

    own_length = OWN if length == 1 else length
    queries = random(rows, heads, length, width)
    shared = (random(1, groups, PREFIX, width), random(1, groups, PREFIX, width))
    keys, values = random(rows, groups, own_length, width), random(rows, groups, own_length, width)
    mask = "causal" if length > 1 else mx.ones((rows, 1, 1, own_length), mx.bool_)
    whole_mask = "causal" if length > 1 else mx.ones((rows, 1, 1, PREFIX + own_length), mx.bool_)
    scale = width**-0.5

    def concatenated(queries: mx.array) -> mx.array:
        whole = [
            mx.concatenate([mx.broadcast_to(one, (rows, *one.shape[1:])), own], axis=2)
            for one, own in zip(shared, (keys, values), strict=True)
        ]
        return mx.fast.scaled_dot_product_attention(queries, *whole, scale=scale, mask=whole_mask)

    whole = [random(rows, groups, PREFIX + own_length, width) for _ in range(2)]
    mx.eval(queries, shared, keys, values, whole)
    ways: dict[str, Callable[[mx.array], mx.array]] = {
        "products": lambda q: attention(q, keys, values, [shared], scale=scale, mask=mask),
        "concatenation, then mx.fast": concatenated,
        "mx.fast where each row keeps all": lambda q: mx.fast.scaled_dot_product_attention(
            q, *whole, scale=scale, mask=whole_mask
        ),
    }
    found = {name: 1000 * milliseconds(partial(way, queries)) for name, way in ways.items()}
    if length > 1:
        for name, way in ways.items():
            gradient = mx.grad(lambda q, way=way: way(q).astype(mx.float32).sum())
            found[f"{name}, gradient"] = 1000 * milliseconds(partial(gradient, queries))
    return found


def training_ways(model: ChatModel, steps: int, batch_size: int, only: str = "") -> dict[str, Any]:
    """Answer tokens a second and peak memory: our steps and mlx-lm's, on the same batches of rows."""
    settings = settings_for(steps)
    entries = shipped_rows()[: steps * batch_size]
    rows = [make_row(model, entry) for entry in entries]
    batches = training_plan(rows, 1.0, batch_size, 1, settings.seed).batches
    ways: dict[str, Callable[[], list[float]]] = {
        "ours, compiled": lambda: our_epochs(model, rows, batches, compiled=True),
        "ours, not compiled": lambda: our_epochs(model, rows, batches, compiled=False),
        "mlx_lm.tuner.trainer": lambda: stock_epochs(model, rows, batches),
    }
    ways = {name: work for name, work in ways.items() if name.startswith(only)}
    seconds: dict[str, list[float]] = {}

    def epochs(name: str) -> None:
        seconds[name] = ways[name]()

    peaks = {name: peak_bytes_of(partial(epochs, name)) / 2**30 for name in ways}
    answer_tokens = sum(len(row.targets) for row in rows)
    return {
        "steps": len(batches),
        "rows": len(rows),
        "answer_tokens": answer_tokens,
        "all_tokens": sum(len(row.tokens) for row in rows),
        "answer_tokens_per_second": {name: answer_tokens / min(each) for name, each in seconds.items()},
        "seconds_of_epochs": {name: [round(value, 3) for value in each] for name, each in seconds.items()},
        "peak_gigabytes": peaks,
    }


def _optimizer(steps: int) -> Any:
    return optimizers.Adam(learning_rate=optimizers.cosine_decay(5e-4, steps))


def our_epochs(
    model: ChatModel,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    compiled: bool,
    epochs: int = 3,
) -> list[float]:
    """Seconds of each epoch by our loop: the first builds the graphs and compiles."""
    settings = settings_for(0)
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, EVERYTHING))
    training = Training(model, adapter, rows, [None] * len(rows), prefix_of(model, rows), Weights(0.0, 0.0))
    optimizer = _optimizer(epochs * len(batches))
    optimizer.init(model.model.trainable_parameters())
    if compiled:
        training.compile_for(batches)
    update = optimizer_step(model.model, optimizer, compiled)

    def epoch() -> None:
        for chosen in batches:
            parts, gradients = training.gradients(chosen, part_sizes(rows[i] for i in chosen))
            update(gradients)
            mx.async_eval(model.model.trainable_parameters(), optimizer.state, parts)
        mx.eval(model.model.trainable_parameters(), optimizer.state)

    try:
        model.model.train()
        return [seconds_of(epoch) for _ in range(epochs)]
    finally:
        model.model.eval()
        adapter.detach()


def stock_epochs(
    model: ChatModel, rows: Sequence[Row], batches: Sequence[Sequence[int]], epochs: int = 3
) -> list[float]:
    """The same by mlx-lm's own trainer, padded as it pads."""
    settings = settings_for(0)
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, EVERYTHING))
    marks: list[float] = []

    def padded(*_: Any, **__: Any) -> Iterator[Any]:
        while True:
            for chosen in batches:
                marks.append(time.perf_counter())
                width = 1 + 32 * -(-max(len(rows[i].tokens) for i in chosen) // 32)
                tokens = np.zeros((len(chosen), width), np.int32)
                for place, i in enumerate(chosen):
                    tokens[place, : len(rows[i].tokens)] = rows[i].tokens
                yield (
                    mx.array(tokens),
                    mx.array([(rows[i].targets[0], len(rows[i].tokens) - 1) for i in chosen]),
                )

    steps = epochs * len(batches) + 1  # the step after the last epoch marks its end
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = stock.TrainingArgs(
                batch_size=len(batches[0]),
                iters=steps,
                steps_per_report=10**6,
                steps_per_save=10**6,
                adapter_file=str(Path(folder) / "adapters.safetensors"),
            )
            optimizer = _optimizer(steps)
            stock.train(model.model, optimizer, [], args=arguments, iterate_batches=padded)
    finally:
        model.model.eval()
        adapter.detach()
    starts = marks[:: len(batches)]
    return [end - start for start, end in itertools.pairwise(starts)]
