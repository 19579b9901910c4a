"""The evaluation stage: base and adapter on every probe, and the table of before and after."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.own_probes import make_probes
from unlearn_mlx.evaluation.probes import Probe, has_own_probes, probe_files, read_probes, write_row
from unlearn_mlx.evaluation.scoring import ANSWER_TOKENS, score_probes, summary
from unlearn_mlx.files import read_json, read_rows, write_json, write_rows
from unlearn_mlx.language_model.adapters import load_adapter
from unlearn_mlx.language_model.blas import cache_folder
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.runs import Run, Work
from unlearn_mlx.synthetic_data.questions import NEAR_DUPLICATE
from unlearn_mlx.topics import fold


def probes_for(run: Run) -> list[Probe]:
    """The probes that this run is judged on: hand-written ones, and its own where there are none."""
    probes = [probe for path in probe_files(run.topic) for probe in read_probes(path)]
    own = run.file("probes.jsonl")
    if own.exists():
        probes = read_probes(own) + probes
    return probes


def prepare_probes(model: ChatModel, work: Work) -> list[str]:
    """Make the run's own probes where nobody wrote any; return the texts that training must not be near."""
    path = work.run.file("probes.jsonl")
    if not has_own_probes(work.run.topic) and not path.exists():
        probes = make_probes(model, work)
        write_rows(path, [write_row(probe) for probe in probes])
    return [probe.question for probe in probes_for(work.run)]


def evaluate(model: ChatModel, work: Work) -> None:
    """Score base and adapter, and write evaluation.json.

    Raises:
        UserError: where there is no adapter yet.
    """
    run = work.run
    if not run.has_adapter:
        raise UserError(f"{run.path} has no adapter yet: run 'unlearn train' first")
    probes = probes_for(run)

    def progress(who: str) -> Any:
        return lambda done, total, unit: work.progress("evaluate", done, total, f"{who} {unit}")

    base = _base_results(model, work, probes, progress("base"))
    adapter = load_adapter(model.model, run.file("adapter"))
    try:
        changed = score_probes(
            model, probes, work.settings.samples, work.settings.seed, progress("adapter"), work.is_cancelled
        )
    finally:
        adapter.detach()
    write_json(
        run.file("evaluation.json"),
        {
            "model": run.manifest["model"],
            "samples": work.settings.samples,
            "base": summary(probes, base, run.topic),
            "adapter": summary(probes, changed, run.topic),
            "nearest_training_question": nearness(probes, run),
            "probes": [
                {**asdict(probe), "base": base[probe.id], "adapter": changed[probe.id]} for probe in probes
            ],
        },
    )


def nearness(probes: Sequence[Probe], run: Run) -> dict[str, Any]:
    """The probe that is nearest to a training question, 0 to 100: the filter allows less than 88."""
    questions = [row["question"] for row in read_rows(run.file("questions.jsonl"), ("question",))]
    questions += [row["question"] for row in read_rows(run.file("retain_questions.jsonl"), ("question",))]
    folded = [fold(question) for question in questions]
    worst: tuple[float, str, str] = (0.0, "", "")
    for probe in probes:
        found = process.extractOne(fold(probe.question), folded, scorer=fuzz.token_sort_ratio)
        if found and found[1] > worst[0]:
            worst = (found[1], probe.question, questions[found[2]])
    return {"likeness": round(worst[0], 1), "probe": worst[1], "question": worst[2], "limit": NEAR_DUPLICATE}


def _base_results(
    model: ChatModel, work: Work, probes: Sequence[Probe], progress: Any
) -> dict[str, dict[str, Any]]:
    """The base's results: measured once a model and set of probes, and kept in the cache."""
    settings = work.settings
    content = [
        model.source.weights_sha256,
        settings.samples,
        settings.seed,
        ANSWER_TOKENS,
        *map(asdict, probes),
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    path = cache_folder() / "base-evaluations" / f"{key}.json"
    if path.exists():
        known: dict[str, dict[str, Any]] = read_json(path)
        if known.keys() == {probe.id for probe in probes}:
            return known
    results = score_probes(model, probes, settings.samples, settings.seed, progress, work.is_cancelled)
    write_json(path, results)
    return results


def read_evaluation(run_folder: Path) -> dict[str, Any]:
    """A run's evaluation.

    Raises:
        UserError: where there is none yet.
    """
    path = run_folder / "evaluation.json"
    if not path.exists():
        raise UserError(f"{run_folder} is not evaluated yet: run 'unlearn evaluate'")
    evaluation: dict[str, Any] = read_json(path)
    return evaluation
