"""A run's result for a terminal: tables, and text that others wrote as it stands."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from unlearn_mlx.evaluation.schema import AUDIT_COLUMNS, METRICS, change_written, with_interval
from unlearn_mlx.text.printable import printable

WIDTH_FOR_CHANGE = 110  # characters of a line


def plain(text: str) -> Text:
    """Text from a model, a topic or a file, as it stands: no markup, no control characters."""
    return Text(printable(text))


def evaluation_table(evaluation: dict[str, Any], width: int = 80) -> Table:
    """Base against adapter, with 95 % intervals where the evaluation has them.

    The interval of the change too, where a line has the ``width`` for it in characters.
    """
    table = Table(title=None, show_edge=False)
    table.add_column("")
    has_change = bool(evaluation.get("intervals")) and width >= WIDTH_FOR_CHANGE
    for name in ("base", "adapter", "change") if has_change else ("base", "adapter"):
        table.add_column(name, justify="right")
    table.add_column("wanted")
    for key, name, less in METRICS:
        if key in evaluation["base"] and key in evaluation["adapter"]:
            values = [with_interval(evaluation, key, whose) for whose in ("base", "adapter")]
            values += [change_written(evaluation, key)] if has_change else []
            table.add_row(name, *map(plain, values), "low" if less else "kept")
    if evaluation.get("intervals"):
        table.caption = "in brackets: 95 % intervals" + ("; change in points" if has_change else "")
    return table


def three_answers(evaluation: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Three questions on the topic, with what base and adapter answer: first those the base knew."""
    probes = [p for p in evaluation["probes"] if p["scope"] == "topic" and p["base"].get("answers")]
    probes.sort(key=lambda p: (p["kind"] != "open", not p["base"]["leaks"][0]))
    for probe in probes[:3]:
        yield probe["question"], probe["base"]["answers"][0], probe["adapter"]["answers"][0]


def audit_table(audit: dict[str, Any]) -> Table:
    """What was tried on the adapter, and how the model did after each."""
    table = Table(title=None, show_edge=False)
    for heading in ("tried", *AUDIT_COLUMNS.values()):
        table.add_column(heading, justify="left" if heading == "tried" else "right")
    for row in audit["rows"]:
        shares = [row.get(name) for name in AUDIT_COLUMNS]
        table.add_row(plain(str(row["name"])), *("" if share is None else f"{share:.0%}" for share in shares))
    return table
