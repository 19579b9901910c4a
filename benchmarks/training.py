"""Training on the same rows: our loop against mlx-lm's ``train`` and mlx-lm-lora's ``train_sft``.

Weights, rows, batch, rank, layers, learning rates and optimizer are the same, and so is the loss: cross
entropy of answer tokens. Speed counts answer tokens that are real, not padding. The peers form their
own batches, and their products have one thread or one a core, whichever is faster; for the comparison of
what was learned mlx-lm gets our batches. mlx-lm-lora takes part where it is there: ``uv run --with
mlx-lm-lora python -m benchmarks training``.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx_lm.tuner import trainer as stock
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset

from benchmarks.side_by_side import ROWS, in_turns, open_model, peak_bytes_of, product_threads
from unlearn_mlx.compute.cpu_blas import blas_threads, core_count
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.config import make_settings
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.loading import model_workers
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.records import ProgressEvent, TrainingRow, read_records
from unlearn_mlx.runs.run import Work, create_run
from unlearn_mlx.sft.batches import make_batch, make_row
from unlearn_mlx.sft.loss import Weights, loss_parts
from unlearn_mlx.sft.trainer import learning_rate_schedule, train, training_plan
from unlearn_mlx.topics import load_topic

STEPS = 20
BATCH_SIZE = 8
HELD_OUT = 32  # rows


def shipped_rows() -> list[TrainingRow]:
    """Whole answers on the topic and on everything else; all are learned by cross entropy here."""
    rows = read_records(ROWS / "dataset" / "train.jsonl", TrainingRow)
    return [row.model_copy(update={"part": "forget"}) for row in rows if row.complete]


def settings_for(steps: int) -> Any:
    """Settings of a training of one epoch with cross entropy alone."""
    return make_settings("standard", epochs=1.0, npo_weight=0.0, kl_weight=0.0, batch_size=BATCH_SIZE)


def ours(
    model: ChatModel,
    rows: Sequence[TrainingRow],
    held_out: Sequence[TrainingRow],
    workers: WorkerPool = ALONE,
) -> dict[str, float]:
    """Train by our loop; its own events say how fast it was."""
    settings = settings_for(len(rows) // BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        source = model.source
        run = create_run(Path(folder) / "run", load_topic(ROWS / "topic.toml"), source.identity, settings, "")
        write_rows(run.file("dataset", "train.jsonl"), [row.as_row() for row in rows])
        write_rows(run.file("dataset", "valid.jsonl"), [row.as_row() for row in held_out[:4]])
        train(model, Work(run, settings, workers=workers))
        rates = [event.tokens_per_second for event in run.events() if isinstance(event, ProgressEvent)]
        weights: Any = mx.load(str(run.file("adapter", "adapters.safetensors")))
        mx.eval(weights)
    return {
        "rate": [rate for rate in rates if rate is not None][-1],
        "loss": held_out_loss(model, weights, held_out),
    }


def peer(
    model: ChatModel,
    train_peer: Callable[..., None],
    rows: Sequence[TrainingRow],
    held_out: Sequence[TrainingRow],
    batches: Callable[..., Iterator[Any]],
) -> dict[str, float]:
    """Train by a peer's loop on our adapter layers."""
    settings = settings_for(len(rows) // BATCH_SIZE)
    steps = len(
        training_plan([make_row(model, row) for row in rows], 1.0, BATCH_SIZE, 1, settings.seed).batches
    )
    mx.random.seed(settings.seed)
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, len(model.model.layers)))
    dataset = CacheDataset(ChatDataset([row.as_row() for row in rows], model.tokenizer, mask_prompt=True))
    answer_tokens = 0

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal answer_tokens
        for batch, lengths in batches(*arguments, **options):
            answer_tokens += int((lengths[:, 1] - lengths[:, 0]).sum().item())
            yield batch, lengths

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        train_peer(
            model.model,
            optimizers.Adam(learning_rate=learning_rate_schedule(settings.learning_rate, steps)),
            dataset,
            steps,
            str(Path(folder) / "adapters.safetensors"),
            counted,
        )
        seconds = time.perf_counter() - began
    weights = adapter.weights()
    mx.eval(weights)
    adapter.detach()
    model.model.eval()
    return {"rate": answer_tokens / seconds, "loss": held_out_loss(model, weights, held_out)}


def train_stock(
    model: Any, optimizer: Any, dataset: Any, steps: int, file: str, batches: Callable[..., Iterator[Any]]
) -> None:
    """mlx-lm's trainer, without validation."""
    arguments = stock.TrainingArgs(
        batch_size=BATCH_SIZE, iters=steps, steps_per_report=5, steps_per_save=10**6, adapter_file=file
    )
    stock.train(model, optimizer, dataset, args=arguments, iterate_batches=batches)


def in_our_order(model: ChatModel, rows: Sequence[TrainingRow]) -> Callable[..., Iterator[Any]]:
    """Batches of the same rows in the order that our training takes, padded as mlx-lm pads."""
    made = [make_row(model, row) for row in rows]
    settings = settings_for(0)
    plan = training_plan(made, 1.0, BATCH_SIZE, 1, settings.seed)

    def batches(*_: Any, **__: Any) -> Iterator[Any]:
        for chosen in plan.batches:
            width = 1 + 32 * -(-max(len(made[i].tokens) for i in chosen) // 32)
            tokens = np.zeros((len(chosen), width), np.int32)
            for place, i in enumerate(chosen):
                tokens[place, : len(made[i].tokens)] = made[i].tokens
            spans = [(made[i].targets[0], len(made[i].tokens) - 1) for i in chosen]
            yield mx.array(tokens), mx.array(spans)

    return batches


def held_out_loss(model: ChatModel, weights: dict[str, mx.array], held_out: Sequence[TrainingRow]) -> float:
    """Nats a token of held-out answers, with an adapter's weights."""
    settings = settings_for(0)
    adapter = Adapter(model.model, LoraShape(settings.rank, settings.scale, len(model.model.layers)))
    adapter.set_weights(weights)
    batch = make_batch([make_row(model, row) for row in held_out], [None] * len(held_out))
    _, (loss, _, _) = loss_parts(model.model, batch, Weights(0.0, 0.0))
    value = float(np.array(loss))
    adapter.detach()
    return value


def measure(repeats: int, steps: int = STEPS) -> dict[str, Any]:
    """Answer tokens a second, peak memory, and the loss after the same rows."""
    model = open_model()
    with model_workers(model) as workers:
        return _measured(model, workers, repeats, steps)


def _measured(model: ChatModel, workers: WorkerPool, repeats: int, steps: int) -> dict[str, Any]:
    entries = shipped_rows()
    rows, held_out = entries[: steps * BATCH_SIZE], entries[-HELD_OUT:]
    found: dict[str, dict[str, float]] = {}

    def rate(name: str, work: Callable[[], dict[str, float]], threads: int) -> Callable[[], float]:
        def once() -> float:
            with product_threads(threads):
                found[name] = work()
            return found[name]["rate"]

        return once

    peers = {"mlx-lm": lambda: peer(model, train_stock, rows, held_out, stock.iterate_batches)}
    if find_spec("mlx_lm_lora"):
        peers["mlx-lm-lora"] = lambda: peer(model, train_lora, rows, held_out, lora_batches())
    ways = {"ours": rate("ours", lambda: ours(model, rows, held_out, workers), blas_threads())}
    for threads in sorted({1, core_count()}):
        for name, work in peers.items():
            way = f"{name}, threads a product: {threads}"
            ways[way] = rate(way, work, threads)
    rates = in_turns(ways, repeats)
    memory = {name: peak_bytes_of(way, workers if name == "ours" else ALONE) for name, way in ways.items()}
    same_rows = peer(model, train_stock, rows, held_out, in_our_order(model, rows))
    return {
        "steps": steps,
        "answer_tokens_per_second": rates,
        "times_faster": {name: rates["ours"] / value for name, value in rates.items() if name != "ours"},
        "peak_bytes": memory,
        "held_out_loss": {"ours": found["ours"]["loss"], "mlx-lm, the same rows": same_rows["loss"]},
    }


def lora_batches() -> Any:
    """mlx-lm-lora's own batches."""
    from mlx_lm_lora.trainer.sft_trainer import iterate_batches

    return iterate_batches


def train_lora(
    model: Any, optimizer: Any, dataset: Any, steps: int, file: str, batches: Callable[..., Iterator[Any]]
) -> None:
    """mlx-lm-lora's supervised trainer, without validation."""
    from mlx_lm_lora.trainer import sft_trainer

    arguments = sft_trainer.SFTTrainingArgs(
        batch_size=BATCH_SIZE, iters=steps, steps_per_report=5, steps_per_save=10**6, adapter_file=file
    )
    sft_trainer.train_sft(model, optimizer, dataset, None, args=arguments, iterate_batches=batches)
