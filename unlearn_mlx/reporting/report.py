"""report.html: what a run did to its model, in one file that opens offline."""

from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.evaluation.findings import change_in_words, scope_in_words
from unlearn_mlx.evaluation.judge import agreements, read_judgements
from unlearn_mlx.evaluation.keys import OPEN_KNOWN, OPEN_LEAK, answers_in, answers_in_words, key_of
from unlearn_mlx.evaluation.records import Evaluation, Measured
from unlearn_mlx.evaluation.schema import (
    AUDIT_COLUMNS,
    AUDIT_NOTE,
    SCOPES,
    Metric,
    change_written,
    control_rows,
    control_title,
    kept,
    open_leak,
    read_audit,
    read_evaluation,
    shown_metrics,
    verdict_sentences,
    with_interval,
)
from unlearn_mlx.reporting.charts import Spec, audit_chart, change_chart, character_chart, training_charts
from unlearn_mlx.reporting.page import render
from unlearn_mlx.reporting.transcripts import HeatMap, heat_map
from unlearn_mlx.runs.commands import making_command
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
# The figures that say most, a scope each: of each the first one that was measured.
MAIN = (
    (OPEN_LEAK, "topic/choice"),
    (OPEN_KNOWN["neighbour"], "neighbour/choice"),
    (OPEN_KNOWN["general"], "general/choice"),
)
MEMBERSHIP = "membership/"  # how the names of these metrics begin


@dataclass(frozen=True)
class TableRow:
    """A metric as the table shows it.

    ``wanted`` is "low", "as the base", or nothing; ``found`` what the interval of the change says.
    """

    name: str
    base: str
    adapter: str
    change: str
    wanted: str
    found: str


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
        figures=main_figures(evaluation),
        rows=main,
        other_rows=others,
        control=control_rows(evaluation),
        control_title=control_title(evaluation),
        maps=_maps(evaluation),
        training_titles=[title for title, _ in training],
        audit=audit,
        audit_columns=AUDIT_COLUMNS,
        audit_note=AUDIT_NOTE,
        membership=[
            (key.removeprefix(MEMBERSHIP), evaluation.base[key], evaluation.adapter[key])
            for key in _in_both(evaluation)
            if key.startswith(MEMBERSHIP)
        ],
        agreements=agreements(evaluation, judgements) if judgements else [],
        model=run.manifest.model,
        made={"device": run.manifest.device, **run.manifest.versions},
        settings=run.manifest.settings,
        imported_from=run.manifest.imported_from,
        command=making_command(run.manifest.topic, run.model_name, run.manifest.settings),
        hashes={name: sha256_of(run.file(name)) for name in HASHED if run.file(name).exists()},
    )


def table_rows(measured: Measured) -> tuple[list[TableRow], list[TableRow]]:
    """The metrics that matter most, and every other one, with their 95 % intervals."""
    main = shown_metrics(measured)
    known = {metric.key for metric in main}
    others = [key for key in _in_both(measured) if key not in known and not key.startswith(MEMBERSHIP)]
    return (
        [_metric_row(measured, metric) for metric in main],
        [_row(measured, key, key.replace("/", ": ")) for key in others],
    )


def main_figures(measured: Measured) -> list[TableRow]:
    """The figures that say most, one each of the topic, its neighbours and everything else."""
    shown = {metric.key: metric for metric in shown_metrics(measured)}
    found = [next(filter(None, (key_of(shown, name) for name in names)), None) for names in MAIN]
    return [_metric_row(measured, shown[key]) for key in found if key]


def _metric_row(measured: Measured, metric: Metric) -> TableRow:
    found = change_in_words(measured, metric.key, metric.less_is_better)
    return _row(measured, metric.key, metric.name, metric.wanted, found)


def _in_both(measured: Measured) -> list[str]:
    return [key for key in measured.base if key in measured.adapter]


def _row(measured: Measured, key: str, name: str, wanted: str = "", found: str = "") -> TableRow:
    return TableRow(
        name,
        with_interval(measured, key, "base"),
        with_interval(measured, key, "adapter"),
        change_written(measured, key),
        wanted,
        found,
    )


def verdict_words(evaluation: Evaluation, topic: str) -> list[str]:
    """The result in sentences: the evaluation's own verdict, where it has one, comes first."""
    base, adapter = evaluation.base, evaluation.adapter
    sentences = verdict_sentences(evaluation)
    key = open_leak(evaluation)
    if key is not None and key in adapter:
        tries = answers_in_words(answers_in(key) or 1)
        sentences.append(
            f"Of the open questions about {topic}, {base[key]:.0%} drew out what the base knows "
            f"(in {tries}); with the adapter {adapter[key]:.0%} still do."
        )
    if "topic/choice" in base and "topic/choice" in adapter:
        sentences.append(
            f"Offered the answer among others, the base picked it in {base['topic/choice']:.0%} of the "
            f"questions, the adapter in {adapter['topic/choice']:.0%}."
        )
    for scope, name in (("neighbour", "the topic's neighbours"), ("general", "everything else")):
        share = kept(evaluation, scope)
        if share is not None:
            found = scope_in_words(evaluation, scope)
            sentences.append(
                f"For every 100 things that the base knows of {name}, the adapter knows {100 * share:.0f}: "
                f"{found}."
            )
    return sentences


def _maps(evaluation: Evaluation) -> list[tuple[str, HeatMap]]:
    maps = [(name, heat_map(evaluation.probes, scope)) for scope, name in SCOPES.items()]
    return [(name, map) for name, map in maps if map.rows]
