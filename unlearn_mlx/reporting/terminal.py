"""A run's result for a terminal: tables, and text that others wrote as it stands."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from unlearn_mlx.evaluation.findings import change_in_words
from unlearn_mlx.evaluation.records import Audit, Evaluation, Measured, Metrics
from unlearn_mlx.evaluation.schema import (
    AUDIT_COLUMNS,
    change_written,
    control_rows,
    control_title,
    shown_metrics,
    with_interval,
)
from unlearn_mlx.text.printable import printable

WIDTH_FOR_CHANGE = 110  # characters of a line


def plain(text: str) -> Text:
    """Text from a model, a topic or a file, as it stands: no markup, no control characters."""
    return Text(printable(text))


def evaluation_table(measured: Measured, width: int = 80) -> Table:
    """Base against adapter, with 95 % intervals where the evaluation has them.

    The interval of the change too, where a line has the ``width`` for it in characters.
    """
    table = Table(title=None, show_edge=False)
    table.add_column("")
    has_intervals = bool(measured.intervals)
    has_change = has_intervals and width >= WIDTH_FOR_CHANGE
    for name in ("base", "adapter", "change") if has_change else ("base", "adapter"):
        table.add_column(name, justify="right")
    table.add_column("found" if has_intervals else "wanted")
    for metric in shown_metrics(measured):
        values = [with_interval(measured, metric.key, whose) for whose in ("base", "adapter")]
        values += [change_written(measured, metric.key)] if has_change else []
        found = change_in_words(measured, metric.key, metric.less_is_better)
        table.add_row(metric.name, *map(plain, values), found if has_intervals else metric.wanted)
    if has_intervals:
        table.caption = "in brackets: 95 % intervals" + ("; change in points" if has_change else "")
    return table


def control_table(metrics: Metrics) -> Group | None:
    """What a random adapter of the same norm does; None where that was not measured."""
    rows = control_rows(metrics)
    if not rows:
        return None
    table = Table(title=None, show_edge=False)
    for heading in ("", "base", "adapter", "random"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in rows:
        table.add_row(name, *map(plain, values))
    return Group("", Text(control_title(metrics).capitalize()), table)


def three_answers(evaluation: Evaluation) -> Iterable[tuple[str, str, str]]:
    """Three questions on the topic, with what base and adapter answer: first those the base knew."""
    answered = [probe for probe in evaluation.probes if probe.base.answers and probe.adapter.answers]
    probes = [probe for probe in answered if probe.scope == "topic"]
    probes.sort(key=lambda probe: (probe.kind != "open", not probe.base.leaks[0]))
    for probe in probes[:3]:
        yield probe.question, probe.base.answers[0], probe.adapter.answers[0]


def audit_table(audit: Audit) -> Table:
    """What was tried on the adapter, and how the model did after each."""
    table = Table(title=None, show_edge=False)
    for heading in ("tried", *AUDIT_COLUMNS.values()):
        table.add_column(heading, justify="left" if heading == "tried" else "right")
    for row in audit.rows:
        shares = [row.share(column) for column in AUDIT_COLUMNS]
        table.add_row(plain(row.name), *("" if share is None else f"{share:.0%}" for share in shares))
    return table
