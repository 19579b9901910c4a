"""The training loop: exact resume, validation, and the checkpoint that serves best."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from unlearn_mlx.compute.cpu_math import log_sum_exp
from unlearn_mlx.compute.memory import peak_bytes
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, save_arrays
from unlearn_mlx.inference.chat_model import ChatModel, vocabulary_logits
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.runs.files import read_json, write_json
from unlearn_mlx.runs.records import NegativeRow, TrainingRow, negative_rows_file, read_records
from unlearn_mlx.runs.run import Work
from unlearn_mlx.sft import parallel
from unlearn_mlx.sft.batches import TOP, ReferenceTopK, Row, batch_order, make_batch, make_row, negative_row
from unlearn_mlx.sft.loss import CHUNK, Weights, target_hidden
from unlearn_mlx.sft.validation import Validation

SAVE_EVERY = 20  # steps between checkpoints
REPORT_EVERY = 5  # steps between looks at the loss: each one waits for the device
WARM_UP = 0.06  # share of the steps
SCORING_ROWS = 16


@dataclass
class Plan:
    """What the seed and the settings decide before the first step."""

    batches: list[list[int]]  # row indices of each step
    validate_at: set[int]  # steps after which validation runs


def train(model: ChatModel, work: Work) -> None:
    """Train an adapter on the run's dataset and leave the best one in ``adapter/``.

    Raises:
        UserError: where the dataset is missing or damaged.
        Cancelled: after the state was saved.
    """
    run, settings = work.run, work.settings
    entries = read_records(run.file("dataset", "train.jsonl"), TrainingRow)
    rows = [make_row(model, entry) for entry in entries]
    if settings.npo_weight:
        telling = read_records(negative_rows_file(run.file("dataset")), NegativeRow)
        rows += [negative_row(model, entry) for entry in telling]
    valid_entries = read_records(run.file("dataset", "valid.jsonl"), TrainingRow)
    valid = [make_row(model, entry) for entry in valid_entries]
    if not any(row.part == "forget" for row in rows):
        raise UserError(
            f"{run.file('dataset', 'train.jsonl')} has no forget rows: run 'unlearn answers' again"
        )
    run.event("train", "message", text="the base's own probabilities on retain and negative rows")
    prefix = common_prefix([row.tokens[: row.targets[0]] for row in (*rows, *valid) if row.targets])
    prefix = prefix if model.sees_prefixes else []
    references = reference_top_k(model, rows, prefix, work.workers)
    valid_references = reference_top_k(model, valid, prefix, work.workers)
    validation = Validation(run.topic, valid_entries, valid, valid_references, prefix)

    mx.random.seed(settings.seed)
    layer_count = len(model.model.layers)
    shape = LoraShape(settings.rank, settings.scale, min(settings.layers, layer_count))
    weights = Weights(settings.kl_weight, settings.npo_weight)
    adapter = Adapter(model.model, shape)
    try:
        training = parallel.Training(model, adapter, rows, references, prefix, weights)
        with parallel.shared_training(training, work.workers or ALONE):
            Trainer(training, work, validation).finish()
    finally:
        adapter.detach()


def training_plan(rows: Sequence[Row], epochs: float, batch_size: int, validations: int, seed: int) -> Plan:
    """The order of all batches, and when to validate."""
    batches: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = batch_order(rows, batch_size, seed, epoch)
        batches += order[: max(1, round(len(order) * min(1.0, epochs - epoch)))]
    # The first third moves too fast to be worth a look.
    marks = np.linspace(len(batches) / 3 if validations > 1 else len(batches), len(batches), validations)
    return Plan(batches, {round(float(mark)) for mark in marks})


def reference_top_k(
    model: ChatModel, rows: Sequence[Row], prefix: Sequence[int], workers: WorkerPool | None = None
) -> list[ReferenceTopK | None]:
    """What the base says at the targets of retain and negative rows; None for forget rows."""
    references: list[ReferenceTopK | None] = [None] * len(rows)
    held = sorted(
        (i for i, row in enumerate(rows) if row.part != "forget"), key=lambda i: len(rows[i].tokens)
    )
    found = (workers or ALONE).map(
        _reference_top_k_of, model, held, lambda part: ([rows[i] for i in part], prefix)
    )
    for i, top in found.items():
        references[i] = top
    return references


def _reference_top_k_of(model: ChatModel, rows: Sequence[Row], prefix: Sequence[int]) -> list[ReferenceTopK]:
    references: list[ReferenceTopK] = []
    for start in range(0, len(rows), SCORING_ROWS):
        chosen = rows[start : start + SCORING_ROWS]
        batch = make_batch(chosen, [None] * len(chosen), prefix)
        ids, log_probabilities, of_target = [], [], []
        hidden = target_hidden(model.model, batch)
        for first in range(0, hidden.shape[0], CHUNK):
            logits = vocabulary_logits(model.model, hidden[first : first + CHUNK]).astype(mx.float32)
            likeliest = mx.argpartition(logits, -TOP, axis=-1)[:, -TOP:]
            targets = batch.targets[first : first + CHUNK, None]
            normalizer = log_sum_exp(logits)[:, None]
            ids.append(np.array(likeliest))
            log_probabilities.append(np.array(mx.take_along_axis(logits, likeliest, axis=-1) - normalizer))
            of_target.append(np.array(mx.take_along_axis(logits, targets, axis=-1) - normalizer)[:, 0])
        best, values = np.concatenate(ids), np.concatenate(log_probabilities)
        own = np.concatenate(of_target)
        position = 0
        for row in chosen:
            here = slice(position, position + len(row.targets))
            references.append(ReferenceTopK(best[here].astype(np.int32), values[here], own[here]))
            position += len(row.targets)
    return references


class Trainer:
    """The state of a training: weights, optimizer, step, and what validation has seen."""

    def __init__(self, training: parallel.Training, work: Work, validation: Validation) -> None:
        settings = work.settings
        self.training, self.work, self.validation = training, work, validation
        self.workers: WorkerPool = work.workers or ALONE
        self.model, self.adapter, self.rows = training.model, training.adapter, training.rows
        self.folder = work.run.file("checkpoints")
        self.plan = training_plan(
            self.rows, settings.epochs, settings.batch_size, settings.validations, settings.seed
        )
        self.optimizer = optimizers.Adam(
            learning_rate=learning_rate_schedule(settings.learning_rate, len(self.plan.batches))
        )
        self.optimizer.init(self.model.model.trainable_parameters())
        self.step = 0
        self.best = math.inf

    def finish(self) -> None:
        """Take all steps that are left, and put the best adapter in its place."""
        run, steps = self.work.run, len(self.plan.batches)
        self._resume()
        run.event("train", "message", text=f"{len(self.rows)} rows, {steps} steps, from step {self.step}")
        began, tokens, losses = time.time(), 0, []
        start_step = self.step
        model = self.model.model
        model.train()
        while self.step < steps:
            if self.work.is_cancelled():
                self._save()
                raise Cancelled("training")
            chosen = self.plan.batches[self.step]
            parts, gradients = parallel.step_gradients(self.training, chosen, self.workers)
            gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
            self.optimizer.update(model, gradients)
            mx.async_eval(model.trainable_parameters(), self.optimizer.state, parts)
            self.step += 1
            tokens += sum(len(self.rows[i].targets) for i in chosen)
            losses.append(parts)
            if self.step % REPORT_EVERY == 0 or self.step == steps:
                means = np.array([np.array(parts) for parts in losses]).mean(axis=0)
                rate = tokens / max(1e-9, time.time() - began)
                self.work.progress(
                    "train",
                    self.step,
                    steps,
                    "steps",
                    forget_loss=round(float(means[0]), 4),
                    retain_kl=round(float(means[1]), 4),
                    negative_preference=round(float(means[2]), 4),
                    tokens_per_second=round(rate, 1),
                    seconds_per_step=round((time.time() - began) / (self.step - start_step), 3),
                    memory=peak_bytes(),
                )
                losses = []
            if self.step in self.plan.validate_at:
                self._validate()
            if self.step % SAVE_EVERY == 0:
                self._save()
        model.eval()
        self._save()

    def _validate(self) -> None:
        """See how the adapter stands on held-out rows; the best one so far is kept."""
        model = self.model.model
        model.eval()
        metrics = self.validation.measure(self.model, self.work.settings.seed, self.workers)
        model.train()
        is_best = metrics.score < self.best
        rounded = {name: round(value, 4) for name, value in vars(metrics).items()}
        self.work.run.event("train", "validation", step=self.step, best=is_best, **rounded)
        if is_best:
            self.best = metrics.score
            self.adapter.save(self.work.run.file("adapter"))
            self._save()

    def _save(self) -> None:
        """Write what an exact resume needs; the state file names the arrays, so both change at once."""
        name = f"step-{self.step}.safetensors"
        arrays = {f"adapter/{key}": value for key, value in self.adapter.weights().items()}
        arrays |= {f"optimizer/{key}": value for key, value in tree_flatten(self.optimizer.state)}
        save_arrays(self.folder / name, arrays)
        write_json(
            self.folder / "state.json",
            {
                "step": self.step,
                "arrays": name,
                "best": self.best if math.isfinite(self.best) else None,
                "plan": self._fingerprint(),
            },
        )
        for other in self.folder.glob("*.safetensors"):
            if other.name != name:
                other.unlink()

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is a whole one of this very training; else start anew."""
        path = self.folder / "state.json"
        if not path.exists():
            return
        try:
            state = read_json(path)
            arrays: Any = mx.load(str(self.folder / state["arrays"]))
            mx.eval(arrays)
            step, best, plan = int(state["step"]), state["best"], state["plan"]
        except (UserError, RuntimeError, OSError, KeyError, TypeError, ValueError):
            self.work.run.event("train", "message", text="the checkpoint is damaged: training starts anew")
            return
        # Rows that were edited since make another training, and a best adapter that was deleted
        # cannot be brought back from the last step.
        if plan != self._fingerprint() or (best is not None and not self.work.run.has_adapter):
            return
        parts: dict[str, dict[str, mx.array]] = {"adapter": {}, "optimizer": {}}
        for key, value in arrays.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        self.adapter.set_weights(parts["adapter"])
        self.optimizer.state = tree_map(lambda value: value, tree_unflatten(list(parts["optimizer"].items())))
        self.step = step
        self.best = math.inf if best is None else float(best)

    def _fingerprint(self) -> str:
        rows = json.dumps([vars(row) for row in (*self.rows, *self.validation.rows)])
        return hashlib.sha256((rows + self.work.settings.model_dump_json()).encode()).hexdigest()


def learning_rate_schedule(peak: float, steps: int) -> Any:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warm_up = max(1, round(WARM_UP * steps))
    return optimizers.join_schedules(
        [
            optimizers.linear_schedule(peak / warm_up, peak, warm_up),
            optimizers.cosine_decay(peak, max(1, steps - warm_up), peak / 10),
        ],
        [warm_up],
    )
