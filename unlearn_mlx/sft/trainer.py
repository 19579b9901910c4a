"""The training loop: exact resume, validation, and the checkpoint that serves best."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from unlearn_mlx.compute.cpu_math import log_sum_exp
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.planner import usual_computation
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, are_finite, load_adapter, save_arrays
from unlearn_mlx.inference.chat_model import ChatModel, vocabulary_logits
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.building import remove
from unlearn_mlx.runs.files import read_json, sha256_of, write_json
from unlearn_mlx.runs.records import NegativeRow, TrainingRow, negative_rows_file, read_records
from unlearn_mlx.runs.run import RESULTS, TELL_EVERY, Work
from unlearn_mlx.sft import parallel
from unlearn_mlx.sft.batches import (
    TOP,
    ReferenceTopK,
    Row,
    batch_order,
    make_batch,
    make_row,
    negative_row,
    prefix_of,
)
from unlearn_mlx.sft.compiled import compiles_steps, optimizer_step
from unlearn_mlx.sft.loss import CHUNK, Weights, target_hidden
from unlearn_mlx.sft.validation import Validation

SAVE_EVERY = 20  # steps between checkpoints
REPORT_EVERY = 5  # steps between looks at the loss, each of which waits for the device; slow ones fewer
WARM_UP = 0.06  # share of the steps
SCORING_ROWS = 16


@dataclass
class Plan:
    """What the seed and the settings decide before the first step."""

    batches: list[list[int]]  # row indices of each step
    validate_at: set[int]  # steps after which validation runs


def train(model: ChatModel, work: Work, start: Path | None = None) -> None:
    """Train an adapter on the run's dataset and leave the best one in ``adapter/``.

    It begins as a fresh one, or as the one in the folder ``start``.

    Raises:
        UserError: where the dataset is missing or damaged, or the loss is not finite.
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
            f"{run.file('dataset', 'train.jsonl')} has no forget rows: "
            f"run '{run.stage_command('answers')} --again'"
        )
    run.event("train", "message", text="the base's own probabilities on retain and negative rows")
    prefix = prefix_of(model, (*rows, *valid))
    references = reference_top_k(model, rows, prefix, work.workers, work.is_cancelled)
    valid_references = reference_top_k(model, valid, prefix, work.workers, work.is_cancelled)
    validation = Validation(run.topic, valid_entries, valid, valid_references, prefix)

    mx.random.seed(settings.seed)
    layer_count = len(model.model.layers)
    shape = LoraShape(settings.rank, settings.scale, min(settings.layers, layer_count))
    weights = Weights(settings.kl_weight, settings.npo_weight)
    adapter = load_adapter(model.model, start) if start else Adapter(model.model, shape)
    try:
        computation = run.manifest.computation or usual_computation(current_device())
        training = parallel.Training(model, adapter, rows, references, prefix, weights, computation)
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
    model: ChatModel,
    rows: Sequence[Row],
    prefix: Sequence[int],
    workers: WorkerPool | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[ReferenceTopK | None]:
    """What the base says at the targets of retain and negative rows; None for forget rows.

    Raises:
        Cancelled: between two batches, once ``is_cancelled`` returns True.
    """
    references: list[ReferenceTopK | None] = [None] * len(rows)
    held = sorted(
        (i for i, row in enumerate(rows) if row.part != "forget"), key=lambda i: len(rows[i].tokens)
    )
    batches = [held[start : start + SCORING_ROWS] for start in range(0, len(held), SCORING_ROWS)]
    found = (workers or ALONE).map(
        _reference_top_k_of,
        model,
        [[rows[i] for i in batch] for batch in batches],
        (prefix,),
        is_cancelled,
    )
    for batch, of_batch in zip(batches, found, strict=True):
        for i, top in zip(batch, of_batch, strict=True):
            references[i] = top
    return references


def _reference_top_k_of(
    model: ChatModel, batches: Sequence[Sequence[Row]], prefix: Sequence[int]
) -> Generator[list[ReferenceTopK], None, None]:
    for rows in batches:
        batch = make_batch(rows, [None] * len(rows), prefix)
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
        # Behind the last row's targets comes padding.
        ends = np.cumsum([len(row.targets) for row in rows])
        best, values, own = (
            np.split(np.concatenate(parts), ends)[:-1] for parts in (ids, log_probabilities, of_target)
        )
        yield [ReferenceTopK(i.astype(np.int32), v, o) for i, v, o in zip(best, values, own, strict=True)]


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
        self.is_validated = True  # at this step, where it is one to be validated at

    def finish(self) -> None:
        """Take all steps that are left, and put the best adapter in its place."""
        run, steps = self.work.run, len(self.plan.batches)
        self._resume()
        run.event("train", "message", text=f"{len(self.rows)} rows, {steps} steps, from step {self.step}")
        began, tokens, losses = time.monotonic(), 0, []
        told = began
        start_step = self.step
        model = self.model.model
        compiled = compiles_steps(steps)
        if compiled:
            self.training.compile_for(self.plan.batches)
        update = optimizer_step(model, self.optimizer, compiled)
        model.train()
        if not self.is_validated:  # a process was killed in it, perhaps while it replaced the best adapter
            self._validate()
        while self.step < steps:
            chosen = self.plan.batches[self.step]
            try:
                parts, gradients = parallel.step_gradients(
                    self.training, chosen, self.workers, self.work.is_cancelled
                )
            except Cancelled:
                self._save()
                raise
            update(gradients)
            mx.async_eval(model.trainable_parameters(), self.optimizer.state, parts)
            self.step += 1
            tokens += sum(len(self.rows[i].targets) for i in chosen)
            losses.append(parts)
            is_slow = time.monotonic() - told >= TELL_EVERY
            if self.step % REPORT_EVERY == 0 or self.step == steps or is_slow:
                told = time.monotonic()
                means = np.array([np.array(parts) for parts in losses]).mean(axis=0)
                if not np.isfinite(means).all():
                    raise self._diverged("loss")
                rate = tokens / max(1e-9, time.monotonic() - began)
                self.work.progress(
                    "train",
                    self.step,
                    steps,
                    "steps",
                    forget_loss=round(float(means[0]), 4),
                    retain_kl=round(float(means[1]), 4),
                    negative_preference=round(float(means[2]), 4),
                    tokens_per_second=round(rate, 1),
                    seconds_per_step=round((time.monotonic() - began) / (self.step - start_step), 3),
                )
                losses = []
            if self.step in self.plan.validate_at:
                self.is_validated = False
                self._save()
                self._validate()
            if self.step % SAVE_EVERY == 0:
                self._save()
        model.eval()
        self._save()
        if not math.isfinite(self.best):
            raise self._diverged("validation")

    def _diverged(self, what: str) -> UserError:
        kept = ", the last good checkpoint is kept" if (self.folder / "state.json").exists() else ""
        return UserError(
            f"the {what} is not finite at step {self.step}{kept}: train it with a lower rate, "
            f"'{self.work.run.gentler_training}'"
        )

    def _validate(self) -> None:
        """See how the adapter stands on held-out rows; the best one so far is kept."""
        model = self.model.model
        model.eval()
        metrics = self.validation.measure(
            self.model, self.work.settings.seed, self.workers, self.work.is_cancelled
        )
        model.train()
        is_best = metrics.score < self.best
        rounded = {name: round(value, 4) for name, value in vars(metrics).items()}
        self.work.run.event("train", "validation", step=self.step, best=is_best, **rounded)
        self.is_validated = True
        if is_best:
            self.best = metrics.score
            for name in RESULTS:  # they are of the adapter that is replaced
                self.work.run.file(name).unlink(missing_ok=True)
            self.adapter.save(self.work.run.file("adapter"))
            self._save()

    def _save(self) -> None:
        """Write what an exact resume needs; the state file names the arrays, so both change at once.

        Raises:
            UserError: where the weights are not finite: there is nothing to go on from.
        """
        name = f"step-{self.step}.safetensors"
        arrays = {f"adapter/{key}": value for key, value in self.adapter.weights().items()}
        if not are_finite(arrays):
            raise self._diverged("adapter")
        arrays |= {f"optimizer/{key}": value for key, value in tree_flatten(self.optimizer.state)}
        save_arrays(self.folder / name, arrays)
        write_json(
            self.folder / "state.json",
            {
                "step": self.step,
                "arrays": name,
                "sha256": sha256_of(self.folder / name),
                "best": self.best if math.isfinite(self.best) else None,
                "adapter": adapter_sha256(self.work.run.file("adapter")),  # that was best
                "validated": self.is_validated,
                "plan": self._fingerprint(),
            },
        )
        remove([other for other in self.folder.glob("*.safetensors") if other.name != name])

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is a whole one of this very training; else start anew."""
        path = self.folder / "state.json"
        if not path.exists():
            return
        try:
            state = read_json(path)
            if sha256_of(self.folder / state["arrays"]) != state["sha256"]:
                raise ValueError("its arrays are others")
            arrays: Any = mx.load(str(self.folder / state["arrays"]))
            mx.eval(arrays)
            step, best, plan = int(state["step"]), state["best"], state["plan"]
            kept, is_validated = state.get("adapter"), bool(state.get("validated", True))
        except (UserError, RuntimeError, OSError, KeyError, TypeError, ValueError):
            self.work.run.event("train", "message", text="the checkpoint is damaged: training starts anew")
            return
        # Rows that were edited since make another training, and a best adapter that was deleted or
        # replaced cannot be brought back from the last step.
        there = adapter_sha256(self.work.run.file("adapter"))
        is_lost = best is not None and (not there or (is_validated and kept not in (None, there)))
        if plan != self._fingerprint() or is_lost:
            return
        parts: dict[str, dict[str, mx.array]] = {"adapter": {}, "optimizer": {}}
        for key, value in arrays.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        self.adapter.set_weights(parts["adapter"])
        self.optimizer.state = tree_map(lambda value: value, tree_unflatten(list(parts["optimizer"].items())))
        self.step, self.is_validated = step, is_validated
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
