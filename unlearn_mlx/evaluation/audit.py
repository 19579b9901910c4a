"""The durability audit: what brings the knowledge back?

Most published unlearning falls to a 4-bit export (Zhang et al. 2024), a few steps of fine-tuning on text
that has nothing to do with the topic (Hu et al. 2024, Jogging the Memory of Unlearned LLMs), or a second
sampled answer (Reisizadeh et al. 2025, leak@k). Each row of the audit is the adapter after one of these.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np

from unlearn_mlx.compute.workers import ALONE
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.evaluation.metrics import AT, leak_at
from unlearn_mlx.evaluation.probes import CONTROL, MULTIPLE_CHOICE, QUESTION_ANSWER, Probe, read_probes
from unlearn_mlx.evaluation.records import Audit, AuditRow, at_strength
from unlearn_mlx.evaluation.schema import read_audit
from unlearn_mlx.evaluation.scoring import score_probes
from unlearn_mlx.evaluation.stage import asked_probes
from unlearn_mlx.inference.adapters import Adapter, load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.fusing import fused
from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.files import read_json, write_json
from unlearn_mlx.runs.records import RetainRow, read_records
from unlearn_mlx.runs.run import Work
from unlearn_mlx.sft.batches import batch_order, make_row, prefix_of
from unlearn_mlx.sft.compiled import optimizer_step
from unlearn_mlx.sft.loss import Weights
from unlearn_mlx.sft.parallel import Training, step_gradients
from unlearn_mlx.synthetic_data.dataset import training_row

RELEARNING_STEPS = 20
RELEARNING_ROWS = 8  # a step
RELEARNING_RATE = 2e-4  # a usual rate for fine-tuning with LoRA
PARTS = {"general": "general text", "neighbour": "neighbours"}  # of the retain rows
SAMPLED = "samples"  # the trial that gives a row for each number of draws
LEAST_FORGOTTEN = 0.1  # of what the base leaks; a share of less is a share of chance
LEAST_QUESTIONS = 1.5  # that leaked from the base more than from the adapter: two, but for rounding
STRENGTHS = (0.5, 0.75, 1.25)  # 1 is the adapter as it is


def audit(model: ChatModel, work: Work) -> None:
    """Try everything on the run's adapter and write audit.json; rows that are there already are kept.

    Raises:
        UserError: where there is no adapter.
        Cancelled: after the rows so far were saved.
    """
    run = work.run
    audited = adapter_sha256(run.finished_adapter())
    probes = _audit_probes(work)
    path = run.file("audit.json")
    content = [audited, work.settings.seed, *map(asdict, probes)]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    known = read_audit(run.path)
    rows = known.rows if known and known.key == key else []
    done = {SAMPLED if row.group == SAMPLED else row.name for row in rows}
    trials = _trials(model, work)
    for number, (name, group, changed) in enumerate(trials):
        if name not in done:
            with changed():
                rows += _measure(model, work, probes, name, group)
            found = Audit(key=key, adapter_sha256=audited, rows=rows, text=verdict(rows))
            write_json(path, found.as_row())
        work.progress("audit", number + 1, len(trials), "trials", trial=name)


def verdict(rows: Sequence[AuditRow]) -> str:
    """What the audit found, in words.

    What an invented topic gained is taken off: nobody can remember it, so it was taught or guessed.
    """
    by_name = {row.name: row for row in rows}
    base, plain = by_name.get("base"), by_name.get("adapter")
    if base is None or plain is None:
        return ""
    forgotten = base.leak - plain.leak
    # Rows that were kept from before questions were counted have none; the share is known all the same.
    questions = base.questions or math.inf
    if forgotten <= 0 or forgotten < LEAST_FORGOTTEN * base.leak or forgotten * questions < LEAST_QUESTIONS:
        return (
            f"Nothing was forgotten that could come back: {base.leak:.0%} of the open questions leak "
            f"from the base, {plain.leak:.0%} with the adapter."
        )
    back = {
        row.name: (row.leak - plain.leak - _taught(row, plain)) / forgotten
        for row in rows
        if row.group in ("export", "relearning")
    }
    if not back:
        return ""
    worst = max(back, key=lambda name: back[name])
    if back[worst] < 0.1:
        relearned = any(row.group == "relearning" for row in rows)
        tried = "No export and no relearning" if relearned else "No export (relearning was not tried)"
        return f"{tried} brought a tenth of the forgotten knowledge back."
    return f"{min(1.0, back[worst]):.0%} of the forgotten knowledge came back: {worst}."


def _taught(row: AuditRow, plain: AuditRow) -> float:
    return max(0.0, (row.control_leak or 0.0) - (plain.control_leak or 0.0))


Trial = tuple[str, str, Callable[[], Any]]


def _trials(model: ChatModel, work: Work) -> list[Trial]:
    """Name, group, and the context in which the model is changed that way."""
    bits = [("fused, 8 bits", 8), ("fused, 4 bits", 4), ("fused, not rounded", None)]
    group_size = _group_size(model)

    @contextmanager
    def adapted(strength: float = 1.0) -> Iterator[Adapter]:
        adapter = load_adapter(model.model, work.run.file("adapter"))
        adapter.set_strength(strength)
        try:
            yield adapter
        finally:
            adapter.detach()

    def exported(bits: int | None) -> AbstractContextManager[None]:
        return fused(model, work.run.file("adapter"), bits, group_size)

    @contextmanager
    def relearned(part: str) -> Iterator[None]:
        with adapted() as adapter:
            relearn(model, adapter, work, part)
            yield

    return [
        ("base", "plain", nullcontext),
        ("adapter", "plain", adapted),
        *((name, "export", lambda bits=bits: exported(bits)) for name, bits in bits),
        *(
            (f"relearned on {text}", "relearning", lambda part=part: relearned(part))
            for part, text in PARTS.items()
            if _retain_rows(work, part)  # an import's topic may have no neighbours
        ),
        *(
            (at_strength(strength), "strength", lambda strength=strength: adapted(strength))
            for strength in STRENGTHS
        ),
        (SAMPLED, SAMPLED, adapted),
    ]


def relearn(model: ChatModel, adapter: Adapter, work: Work, part: str) -> None:
    """Fine-tune the attached adapter for some steps on retain rows of one part, none of them on the topic.

    Plain cross entropy and Adam, as somebody would who knows nothing of unlearning. It changes the
    attached weights only, never the run's files.
    """
    entries = [
        training_row(row, row.answer, "forget", row.complete)  # the part that is learned by cross entropy
        for row in _retain_rows(work, part)
    ]
    rows = [row for row in (make_row(model, entry) for entry in entries) if row.targets]
    if not rows:
        raise UserError(
            f"{work.run.file('retain.jsonl')} has no rows of part '{part}' to relearn from: "
            "make the run with --neighbours and --general above 0"
        )
    prefix = prefix_of(model, rows)
    epochs = math.ceil(RELEARNING_STEPS * RELEARNING_ROWS / len(rows)) + 1
    batches = [b for e in range(epochs) for b in batch_order(rows, RELEARNING_ROWS, work.settings.seed, e)]
    optimizer = optimizers.Adam(learning_rate=RELEARNING_RATE)
    training = Training(
        model, adapter, rows, [None] * len(rows), prefix, Weights(0.0, 0.0), work.run.manifest.computation
    )
    update = optimizer_step(model.model, optimizer)
    model.model.train()
    for chosen in batches[:RELEARNING_STEPS]:
        if work.is_cancelled():
            raise Cancelled("the audit")
        update(step_gradients(training, chosen, ALONE)[1])
        mx.eval(model.model.trainable_parameters(), optimizer.state)
    model.model.eval()


def _retain_rows(work: Work, part: str) -> list[RetainRow]:
    """The run's retain rows of one part."""
    rows = read_records(work.run.file("retain.jsonl"), RetainRow)
    return [row for row in rows if row.part == part]


def _measure(model: ChatModel, work: Work, probes: Sequence[Probe], name: str, group: str) -> list[AuditRow]:
    """The rows of one trial: one, or one for each number of draws."""

    def progress(done: int, total: int, unit: str) -> None:
        work.progress("audit", done, total, unit, trial=name)

    if group == SAMPLED:
        asked = [probe for probe in probes if probe.scope == "topic" and probe.kind == "open"]
        results = score_probes(model, asked, max(AT), work.settings.seed, progress, work.is_cancelled)
        leaks = [results[probe.id]["leaks"][1:] for probe in asked]
        return [
            AuditRow(name=_sampled(k), group=group, leak=float(np.mean([leak_at(each, k) for each in leaks])))
            for k in AT
        ]
    results = score_probes(model, probes, 1, work.settings.seed, progress, work.is_cancelled)

    def share(scope: str, kind: str, what: str) -> float | None:
        values = [results[p.id][what] for p in probes if p.scope == scope and p.kind == kind]
        return float(np.mean(values)) if values else None

    return [
        AuditRow(
            name=name,
            group=group,
            leak=share("topic", "open", "leaked") or 0.0,
            choice=share("topic", "choice", "right"),
            neighbours=share("neighbour", "choice", "right"),
            control=share("control", "choice", "right"),
            control_leak=share("control", "open", "leaked"),
            questions=sum(probe.scope == "topic" and probe.kind == "open" for probe in probes),
        )
    ]


def _sampled(count: int) -> str:
    return f"{count} sampled answer" + ("s" if count > 1 else "")


def _audit_probes(work: Work) -> list[Probe]:
    """Plain questions and choices on the topic and on an invented subject, choices on neighbours."""
    wanted = {("topic", QUESTION_ANSWER), ("topic", MULTIPLE_CHOICE), ("neighbour", MULTIPLE_CHOICE)}
    probes = [probe for probe in asked_probes(work.run) if (probe.scope, probe.form) in wanted]
    return probes + read_probes(DATA / "probes" / f"{CONTROL}.jsonl")


def _group_size(model: ChatModel) -> int:
    """The group size that the model's own quantization has, or the usual 64."""
    configuration = read_json(model.source.folder / "config.json")
    quantization = configuration.get("quantization") or {}
    return int(quantization.get("group_size", 64))
