"""The evaluation stage: base and adapter on every probe, and the table of before and after."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_mlx.evaluation.base_results import base_results, digest
from unlearn_mlx.evaluation.control import control, controlled_probes, random_weights
from unlearn_mlx.evaluation.forms import forms_file, read_forms
from unlearn_mlx.evaluation.generated_probes import make_probes
from unlearn_mlx.evaluation.intervals import clusters_of, compare
from unlearn_mlx.evaluation.keys import is_share
from unlearn_mlx.evaluation.labels import knowledge_of, label_answers
from unlearn_mlx.evaluation.metrics import Results, Values, means, metric_rows, values_of
from unlearn_mlx.evaluation.probes import (
    Probe,
    even_share,
    has_written_probes,
    probe_files,
    read_probes,
    row_of,
    write_row,
)
from unlearn_mlx.evaluation.records import Evaluation, NearestTraining
from unlearn_mlx.evaluation.scoring import BLOCK, SCORES, score_probes
from unlearn_mlx.evaluation.side_effects import compare_neutral, texts_for
from unlearn_mlx.evaluation.verdict import verdict
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.files import write_json, write_rows
from unlearn_mlx.runs.records import Question, checked, read_records
from unlearn_mlx.runs.run import Run, Work
from unlearn_mlx.text.similarity import NEAR_DUPLICATE, Nearness
from unlearn_mlx.topics import Topic


def every_probe(run: Run) -> list[Probe]:
    """What is known to ask of this run's topic: hand-written probes, and its own where there are none."""
    topic = run.topic
    probes = [probe for path in probe_files(topic) for probe in read_probes(path)]
    probes += read_forms(forms_file(topic), probes)
    own = run.file("probes.jsonl")
    if own.exists():
        probes = read_probes(own) + probes
    return probes


def asked_probes(run: Run) -> list[Probe]:
    """The probes that this run is judged on: as many of them as its settings say."""
    return even_share(every_probe(run), run.settings.probes)


def prepare_probes(model: ChatModel, work: Work) -> list[str]:
    """Make the run's own probes where nobody wrote any; return the texts that training must not be near."""
    path = work.run.file("probes.jsonl")
    if not has_written_probes(work.run.topic) and not path.exists():
        probes = make_probes(model, work)
        write_rows(path, [write_row(probe) for probe in probes])
    return [probe.question for probe in every_probe(work.run)]


def evaluate(model: ChatModel, work: Work) -> None:
    """Score base and adapter, and write evaluation.json.

    Raises:
        UserError: where there is no adapter yet.
    """
    run, settings = work.run, work.settings
    folder = run.finished_adapter()
    if run.has_other_adapter:
        run.event("evaluate", "message", text="the adapter is not the one that training left behind")
    measured = adapter_sha256(folder)
    topic, probes = run.topic, asked_probes(run)
    base = base_results(model, work, probes, _progress(work, "base"))
    adapter = load_adapter(model.model, folder)
    try:
        changed = _adapter_results(model, work, probes, "adapter")
        base_neutral, changed_neutral, membership = compare_neutral(
            model,
            adapter,
            *texts_for(topic, settings.probes),
            settings.seed,
            _progress(work, "both on"),
            work.is_cancelled,
            work.workers,
        )
        shaken = controlled_probes(probes, settings.samples)
        adapter.set_weights(random_weights(adapter, settings.seed))
        random = _adapter_results(model, work, shaken, "random adapter")
    finally:
        adapter.detach()
    knowledge = knowledge_of(topic, probes, base)
    label_answers(knowledge, probes, base)
    label_answers(knowledge, probes, changed, base)
    values: dict[str, Any] = {
        "model": run.manifest.model,
        "adapter_sha256": measured,
        "samples": settings.samples,
        "scores": SCORES,
        **counted(probes, base, changed, topic, settings.seed, (base_neutral, changed_neutral)),
        "control": control(shaken, base, changed, random, settings.seed),
        "nearest_training_question": nearness(probes, run),
        "probes": [
            {**row_of(probe), "base": base[probe.id], "adapter": changed[probe.id]} for probe in probes
        ],
    }
    for whose, found in membership.items():
        values[whose] |= found
    # Weights that diverged in training give answers that cannot be measured.
    where = f"{run.path}: the adapter cannot be measured"
    evaluation = checked(Evaluation, values, where, f"train with a lower rate, '{run.gentler_training}'")
    evaluation.verdict = verdict(evaluation)
    write_json(run.file("evaluation.json"), evaluation.as_row())
    for who, asked in (("adapter", probes), ("random adapter", shaken)):
        _journal(run, asked, who).unlink(missing_ok=True)


def counted(
    probes: Sequence[Probe],
    base: Results,
    changed: Results,
    topic: Topic,
    seed: int,
    neutral: tuple[Values, Values] = ({}, {}),
) -> dict[str, dict[str, Any]]:
    """The metrics of "base" and "adapter" with their "intervals", from the results on every probe.

    ``neutral`` are the metrics of both on everyday texts, one value a text.
    """
    rows = metric_rows(probes, base, topic, changed)
    before = {**values_of(rows), **neutral[0]}
    after = {**values_of(metric_rows(probes, changed, topic, base)), **neutral[1]}
    clusters = {name: clusters_of([(probe.id, probe.entity) for probe, _ in rows[name]]) for name in rows}
    return {
        "base": means(before),
        "adapter": means(after),
        "intervals": {
            name: compare(before[name], after[name], seed, clusters.get(name), is_share(name))
            for name in before
        },
    }


def _progress(work: Work, who: str) -> Callable[[int, int, str], None]:
    return lambda done, total, unit: work.progress("evaluate", done, total, f"{who} {unit}")


def _adapter_results(model: ChatModel, work: Work, probes: Sequence[Probe], who: str) -> Results:
    """The results of the adapter that is on, kept in a journal until the evaluation is whole."""
    settings = work.settings
    return score_probes(
        model,
        probes,
        settings.samples,
        settings.seed,
        _progress(work, who),
        work.is_cancelled,
        _journal(work.run, probes, who),
        work.workers,
    )


def nearness(probes: Sequence[Probe], run: Run) -> NearestTraining:
    """The probe that is nearest to a training question, 0 to 100, and how many reach the limit."""
    files = [run.file(f"{name}.jsonl") for name in ("questions", "retain_questions")]
    files += sorted(run.path.glob("mends/*/questions.jsonl"))
    trained = Nearness(row.question for path in files for row in read_records(path, Question))
    found = [(*trained.nearest(probe.question), probe.question) for probe in probes]
    similarity, question, probe = max(found, default=(0.0, "", ""))
    return NearestTraining(
        similarity=round(similarity, 1),
        probe=probe,
        question=question,
        limit=NEAR_DUPLICATE,
        near=sum(entry[0] >= NEAR_DUPLICATE for entry in found),
        probes=len(found),
    )


def _journal(run: Run, probes: Sequence[Probe], who: str) -> Path:
    """Where a cut-off score of this very adapter, or of its control, on these very probes lies."""
    content = [who, adapter_sha256(run.file("adapter")), BLOCK, SCORES, *map(asdict, probes)]
    return run.file("journal", f"evaluation-{digest(content)}.jsonl")
