"""Runs side by side, and which of them no other beats in forgetting and keeping at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.keys import answers_in, answers_in_words
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER
from unlearn_mlx.evaluation.records import Evaluation
from unlearn_mlx.evaluation.schema import (
    kept,
    open_leak,
    read_evaluation,
    shown_metrics,
    with_interval,
)
from unlearn_mlx.reporting.charts import pareto_chart
from unlearn_mlx.reporting.page import render
from unlearn_mlx.runs.run import Run

WIDTH, HEIGHT = 56, 14  # of the plot in a terminal, in characters


@dataclass(frozen=True)
class Compared:
    """A run among others: ``leak`` of the topic and ``kept`` of the neighbours are the plot's axes.

    Both are counted over the first ``answers`` of each question, as many as all of the runs have;
    ``asked_for`` is how many this run's evaluation has.
    """

    name: str
    topic: str
    model: str
    leak: float
    kept: float
    on_front: bool
    evaluation: Evaluation
    answers: int
    asked_for: int


def compare(runs: Iterable[Run]) -> list[Compared]:
    """Read the evaluations of runs and find the Pareto front.

    Raises:
        UserError: where a run is not evaluated, or lacks what the plot needs.
    """
    read = [(run, read_evaluation(run.path)) for run in runs]
    counts = [_answers(evaluation) for _, evaluation in read]
    answers = min(counts, default=1)
    points = []
    for (run, evaluation), count in zip(read, counts, strict=True):
        leak = _leak(evaluation, "adapter", answers, count)
        share = kept(evaluation, "neighbour", answers if answers < count else None)
        if leak is None or share is None:
            raise UserError(f"{run.path} has no probes on topic and neighbours: leave it out")
        points.append((leak, share))
    front = pareto_front(points)
    names = _short_names([run for run, _ in read])
    return [
        Compared(name, run.manifest.topic, run.model_name, *point, is_best, evaluation, answers, asked_for)
        for name, (run, evaluation), point, is_best, asked_for in zip(
            names, read, points, front, counts, strict=True
        )
    ]


def _answers(evaluation: Evaluation) -> int:
    """How many answers an evaluation's open questions had."""
    return answers_in(open_leak(evaluation) or "") or 1


def _leak(evaluation: Evaluation, whose: str, answers: int, asked_for: int) -> float | None:
    """The share of open questions that leak in the first ``answers``; None where none were asked."""
    key = open_leak(evaluation)
    if key is None or answers == asked_for:
        return None if key is None else evaluation.of(whose).get(key)
    asked = [
        probe
        for probe in evaluation.probes
        if probe.scope == "topic" and probe.kind == "open" and probe.form in ("", QUESTION_ANSWER)
    ]
    leaking = sum(bool(probe.shows(whose, answers)) for probe in asked)
    return leaking / len(asked) if asked else None


def other_answers(compared: Sequence[Compared]) -> str:
    """What must be said where the runs' questions had different numbers of answers; else empty."""
    if len({run.asked_for for run in compared}) < 2:
        return ""
    counts = ", ".join(f"{run.name} {run.asked_for}" for run in compared)
    return (
        f"The runs have different numbers of answers to a question ({counts}), and more answers find more: "
        f"what is plotted counts the first {'one' if compared[0].answers == 1 else compared[0].answers} of "
        "each, and lines of different numbers are not to be compared."
    )


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
    ]
    counted = answers_in_words(compared[0].answers)
    if other_answers(compared):
        rows.append((f"topic: leaks in {counted}", [f"{run.leak:.0%}" for run in compared]))
    rows.append((f"topic: leaks in {counted}, with the base alone", [_base_leak(run) for run in compared]))
    for metric in shown_metrics(*(run.evaluation for run in compared)):
        rows.append(
            (
                metric.name,
                [
                    with_interval(run.evaluation, metric.key, "adapter")
                    if metric.key in run.evaluation.adapter
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
        other_answers=other_answers(compared),
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
            "answers": run.answers,
            "base": run.evaluation.base,
            "adapter": run.evaluation.adapter,
        }
        for run in compared
    ]


def _base_leak(run: Compared) -> str:
    leak = _leak(run.evaluation, "base", run.answers, run.asked_for)
    return "–" if leak is None else f"{leak:.0%}"


def _short_names(runs: Sequence[Run]) -> list[str]:
    """The runs' directories by as much of the path as tells them apart."""
    for depth in (1, 2, 3):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]
