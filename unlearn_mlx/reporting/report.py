"""report.html: what a run did to its model, in one file that opens offline."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_mlx.config import PRESETS, Settings, make_settings
from unlearn_mlx.evaluation.judge import agreements, read_judgements
from unlearn_mlx.evaluation.schema import (
    AUDIT_COLUMNS,
    METRICS,
    SCOPES,
    Evaluation,
    Metrics,
    change_written,
    kept,
    read_audit,
    read_evaluation,
    verdict_sentences,
    with_interval,
)
from unlearn_mlx.reporting.charts import Spec, audit_chart, change_chart, character_chart, training_charts
from unlearn_mlx.reporting.page import render
from unlearn_mlx.reporting.transcripts import HeatMap, heat_map
from unlearn_mlx.runs.files import sha256_of, write_atomically
from unlearn_mlx.runs.run import Run

# What a result is made of, for anybody to check that two runs are the same.
HASHED = (
    "topic.toml",
    "questions.jsonl",
    "answers.jsonl",
    "retain.jsonl",
    "probes.jsonl",
    "dataset/train.jsonl",
    "dataset/valid.jsonl",
    "adapter/adapter_config.json",
    "adapter/adapters.safetensors",
    "evaluation.json",
    "audit.json",
)
MEMBERSHIP = "membership/"  # how the names of these metrics begin


@dataclass(frozen=True)
class TableRow:
    """A metric as the table shows it; ``wanted`` is "low", "kept", or nothing."""

    name: str
    base: str
    adapter: str
    change: str
    wanted: str


def write_report(run: Run) -> Path:
    """Write a run's report.html from what lies in the run; return its path.

    Raises:
        UserError: where the run is not evaluated yet.
    """
    path = run.file("report.html")
    write_atomically(path, report_html(run))
    return path


def report_html(run: Run) -> str:
    """A run's report.

    Raises:
        UserError: where the run is not evaluated yet.
    """
    evaluation = read_evaluation(run.path)
    audit = read_audit(run.path)
    training = training_charts(run.events())
    charts: dict[str, Spec | None] = {
        "change": change_chart(evaluation),
        "character": character_chart(evaluation),
        **{f"training-{number}": spec for number, (_, spec) in enumerate(training)},
        "audit": audit_chart(audit.rows) if audit else None,
    }
    main, others = table_rows(evaluation)
    judgements = read_judgements(run.file("judgements.jsonl"))
    return render(
        "report.html",
        {name: spec for name, spec in charts.items() if spec},
        topic=run.manifest.topic,
        evaluation=evaluation,
        verdict=verdict_words(evaluation, run.manifest.topic),
        rows=main,
        other_rows=others,
        maps=_maps(evaluation),
        training_titles=[title for title, _ in training],
        audit=audit,
        audit_columns=AUDIT_COLUMNS,
        membership=[
            (key.removeprefix(MEMBERSHIP), evaluation.base[key], evaluation.adapter[key])
            for key in _in_both(evaluation)
            if key.startswith(MEMBERSHIP)
        ],
        agreements=agreements(evaluation, judgements) if judgements else [],
        model=run.manifest.model,
        made={"device": run.manifest.device, **run.manifest.versions},
        settings=run.manifest.settings,
        command=making_command(run.manifest.topic, run.model_name, run.manifest.settings),
        hashes={name: sha256_of(run.file(name)) for name in HASHED if run.file(name).exists()},
    )


def table_rows(metrics: Metrics) -> tuple[list[TableRow], list[TableRow]]:
    """The metrics that matter most, and every other one, with their 95 % intervals."""
    known = {key: (name, "low" if less else "kept") for key, name, less in METRICS}
    there = _in_both(metrics)
    others = [key for key in there if key not in known and not key.startswith(MEMBERSHIP)]
    return (
        [_row(metrics, key, *known[key]) for key in known if key in there],
        [_row(metrics, key, key.replace("/", ": "), "") for key in others],
    )


def _in_both(metrics: Metrics) -> list[str]:
    return [key for key in metrics.base if key in metrics.adapter]


def _row(metrics: Metrics, key: str, name: str, wanted: str) -> TableRow:
    return TableRow(
        name,
        with_interval(metrics, key, "base"),
        with_interval(metrics, key, "adapter"),
        change_written(metrics, key),
        wanted,
    )


def verdict_words(evaluation: Evaluation, topic: str) -> list[str]:
    """The result in sentences: the evaluation's own verdict, where it has one, comes first."""
    base, adapter = evaluation.base, evaluation.adapter
    sentences = verdict_sentences(evaluation)
    if "topic/open leak" in base and "topic/open leak" in adapter:
        draws = evaluation.samples + 1
        tries = f"in any of {draws} answers" if draws > 1 else "in the answer"
        sentences.append(
            f"Of the open questions about {topic}, {base['topic/open leak']:.0%} drew out what the base "
            f"knows ({tries}); with the adapter {adapter['topic/open leak']:.0%} still do."
        )
    if "topic/choice" in base and "topic/choice" in adapter:
        sentences.append(
            f"Offered the answer among others, the base picked it in {base['topic/choice']:.0%} of the "
            f"questions, the adapter in {adapter['topic/choice']:.0%}."
        )
    for scope, name in (("neighbour", "the topic's neighbours"), ("general", "everything else")):
        share = kept(evaluation, scope)
        if share is not None:
            sentences.append(
                f"For every 100 things that the base knows of {name}, the adapter knows {100 * share:.0f}."
            )
    return sentences


def _maps(evaluation: Evaluation) -> list[tuple[str, HeatMap]]:
    maps = [(name, heat_map(evaluation.probes, scope)) for scope, name in SCOPES.items()]
    return [(name, map) for name, map in maps if map.rows]


def making_command(topic: str, model_name: str, settings: Mapping[str, Any]) -> str:
    """The command that makes a run again: preset and settings in as few words as it takes."""
    options = {
        preset: [
            f"--{key.replace('_', '-')} {value}"
            for key, value in settings.items()
            if key in Settings.model_fields and getattr(make_settings(preset), key) != value
        ]
        for preset in PRESETS
    }
    preset = min(PRESETS, key=lambda preset: (len(options[preset]), preset != "standard"))
    words = ["unlearn run", shlex.quote(topic), "--model", shlex.quote(model_name)]
    if preset != "standard":
        words += ["--preset", preset]
    return " ".join(words + options[preset])
