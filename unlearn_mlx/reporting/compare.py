"""Runs side by side, and which of them no other beats in forgetting and keeping at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import METRICS, Evaluation, kept, read_evaluation, with_interval
from unlearn_mlx.reporting.charts import pareto_chart
from unlearn_mlx.reporting.page import render
from unlearn_mlx.runs.run import Run

WIDTH, HEIGHT = 56, 14  # of the plot in a terminal, in characters


@dataclass(frozen=True)
class Compared:
    """A run among others: ``leak`` of the topic and ``kept`` of the neighbours are the plot's axes."""

    name: str
    topic: str
    model: str
    leak: float
    kept: float
    on_front: bool
    evaluation: Evaluation


def compare(runs: Iterable[Run]) -> list[Compared]:
    """Read the evaluations of runs and find the Pareto front.

    Raises:
        UserError: where a run is not evaluated, or lacks what the plot needs.
    """
    read = []
    for run in runs:
        evaluation = read_evaluation(run.path)
        leak = evaluation.adapter.get("topic/open leak")
        share = kept(evaluation, "neighbour")
        if leak is None or share is None or "topic/open leak" not in evaluation.base:
            raise UserError(f"{run.path} has no probes on topic and neighbours: leave it out")
        read.append((run, evaluation, leak, share))
    front = pareto_front([(leak, share) for _, _, leak, share in read])
    names = _short_names([run for run, *_ in read])
    return [
        Compared(name, run.manifest.topic, run.model_name, leak, share, is_best, evaluation)
        for name, (run, evaluation, leak, share), is_best in zip(names, read, front, strict=True)
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (leak, kept), whether no other point is better in one and at least as good in the other."""
    return [
        not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


def same_questions(compared: Sequence[Compared]) -> bool:
    """Whether all runs were asked the same."""
    return len({tuple(sorted(probe.id for probe in run.evaluation.probes)) for run in compared}) == 1


def table(compared: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Rows of the table: a metric's name and its value with the adapter of each run."""
    rows = [
        ("topic", [run.topic for run in compared]),
        ("model", [run.model for run in compared]),
        ("topic: leaks, with the base alone", [f"{_base_leak(run):.0%}" for run in compared]),
    ]
    for key, name, _ in METRICS:
        if any(key in run.evaluation.adapter for run in compared):
            rows.append(
                (
                    name,
                    [
                        with_interval(run.evaluation, key, "adapter")
                        if key in run.evaluation.adapter
                        else "–"
                        for run in compared
                    ],
                )
            )
    rows.append(("neighbours kept of what the base knows", [f"{run.kept:.0%}" for run in compared]))
    rows.append(("no other is better in both", ["yes" if run.on_front else "" for run in compared]))
    return rows


def terminal_plot(compared: Sequence[Compared]) -> list[str]:
    """Leak (to the right) against kept (upwards) in characters: runs by number, the front's in brackets."""
    leaks, shares = [run.leak for run in compared], [run.kept for run in compared]
    left, right = 0.0, max(0.1, *leaks)
    low, high = min(0.9, *shares), max(1.0, *shares)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for number, run in enumerate(compared, start=1):
        label = f"[{number}]" if run.on_front else f"{number}"
        row = round((high - run.kept) / (high - low) * (HEIGHT - 1))
        column = min(round((run.leak - left) / (right - left) * (WIDTH - 1)), WIDTH - len(label))
        # Runs that fall on one spot stand below each other.
        for line in [*range(row, HEIGHT), *range(row)]:
            if not "".join(grid[line][column : column + len(label)]).strip():
                grid[line][column : column + len(label)] = label
                break
    names = {0: f"{high:.0%}", HEIGHT - 1: f"{low:.0%}"}
    lines = [f"{names.get(line, ''):>5s} │{''.join(row).rstrip()}" for line, row in enumerate(grid)]
    end = f"{right:.0%}"
    return [
        "neighbours kept",
        *lines,
        "      └" + "─" * WIDTH,
        f"       0%{'topic leaks':^{WIDTH - 2 - len(end)}}{end}",
    ]


def compare_html(compared: Sequence[Compared]) -> str:
    """The comparison as a page that opens offline."""
    points = [
        {"name": run.name, "leak": run.leak, "kept": run.kept, "front": run.on_front} for run in compared
    ]
    return render(
        "compare.html",
        {"pareto": pareto_chart(points)},
        names=[run.name for run in compared],
        rows=table(compared),
        same_questions=same_questions(compared),
    )


def as_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """The comparison for a program to read."""
    return [
        {
            "name": run.name,
            "topic": run.topic,
            "model": run.model,
            "leak": run.leak,
            "kept": run.kept,
            "on_front": run.on_front,
            "base": run.evaluation.base,
            "adapter": run.evaluation.adapter,
        }
        for run in compared
    ]


def _base_leak(run: Compared) -> float:
    return run.evaluation.base["topic/open leak"]


def _short_names(runs: Sequence[Run]) -> list[str]:
    """The runs' directories by as much of the path as tells them apart."""
    for depth in (1, 2, 3):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]
