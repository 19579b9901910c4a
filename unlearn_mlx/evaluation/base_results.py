"""What the base says to every probe: taken from what ships, from the cache, or measured, in that order.

It depends on the weights, the probes, the seed and the number of samples alone. For the topics that come
with the project their adapters' evaluations hold it, so that a newcomer's first run measures one half only.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_mlx.config import Settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.metrics import Results
from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.evaluation.records import Evaluation, KnownResults
from unlearn_mlx.evaluation.scoring import ANSWER_TOKENS, BLOCK, SCORES, score_probes
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import write_json
from unlearn_mlx.runs.records import read_record
from unlearn_mlx.runs.run import Work
from unlearn_mlx.runs.shipped import shipped_adapters, shipped_run

Told = Callable[[int, int, str], None]  # how many of how many are done, and of what


def base_results(model: ChatModel, work: Work, probes: Sequence[Probe], told: Told) -> Results:
    """The base's results by the probes' ids; what is measured is kept in the cache.

    General probes are kept apart, since every topic has the same ones.

    Raises:
        Cancelled: between two blocks, which are kept.
    """
    results: Results = {}
    shipped = shipped_results(model.source.weights_sha256, work.settings)
    for general in (False, True):
        chosen = [probe for probe in probes if (probe.scope == "general") == general]
        with_project = {probe.id: shipped[probe] for probe in chosen if probe in shipped}
        if len(with_project) == len(chosen):
            results |= with_project
            if chosen:
                of = "general knowledge" if general else "the topic and its neighbours"
                text = f"what the base says of {of} comes with the project"
                work.run.event("evaluate", "message", text=text)
        else:
            results |= _measured(model, work, chosen, told, len(results), len(probes))
    told(len(probes), len(probes), "probes")
    return results


def shipped_results(weights_sha256: str, settings: Settings) -> dict[Probe, dict[str, Any]]:
    """What the base said when the shipped adapters were measured, as these settings would ask it."""
    found: dict[Probe, dict[str, Any]] = {}
    for folder in shipped_adapters():
        try:
            run = shipped_run(folder)
            asked_alike = (run.settings.seed, run.settings.samples) == (settings.seed, settings.samples)
            if not asked_alike or run.manifest.model.sha256 != weights_sha256:
                continue
            evaluation = read_record(folder / "evaluation.json", Evaluation)
        except UserError:  # damaged: it is measured
            continue
        if evaluation.scores == SCORES:
            found |= {row.probe(): row.base.as_row() for row in evaluation.probes}
    return found


def _measured(
    model: ChatModel, work: Work, probes: Sequence[Probe], told: Told, before: int, of_all: int
) -> Results:
    settings = work.settings

    def scored(done: int, total: int, unit: str) -> None:
        told(before + done, of_all, unit)

    content = [
        model.source.weights_sha256,
        settings.samples,
        settings.seed,
        ANSWER_TOKENS,
        BLOCK,
        SCORES,
        *map(asdict, probes),
    ]
    path = cache_folder() / "base-evaluations" / f"{digest(content)}.json"
    known = _cached(path)
    if known.keys() != {probe.id for probe in probes}:
        journal = path.with_suffix(".jsonl")
        known = score_probes(
            model, probes, settings.samples, settings.seed, scored, work.is_cancelled, journal, work.workers
        )
        write_json(path, known)
        journal.unlink(missing_ok=True)
    return known


def _cached(path: Path) -> Results:
    """A base's results in the cache; none where the file is damaged: they are measured again."""
    try:
        found = read_record(path, KnownResults).root if path.exists() else {}
    except UserError:
        return {}
    return {id: outcome.as_row() for id, outcome in found.items()}


def digest(content: list[Any]) -> str:
    """Names what results depend on."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
