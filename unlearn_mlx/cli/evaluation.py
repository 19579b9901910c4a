"""Commands that look at how well a run worked."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn_mlx.reporting.compare import Compared


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    report = add("report", _report, "write a run's report.html anew")
    report.add_argument("run", metavar="RUN", help="a run's directory, topic or slug")
    compare = add("compare", _compare, "runs side by side: forgetting against keeping")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run directories, topics or slugs")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write it as a page too")
    compare.add_argument("--json", action="store_true", help="print JSON")
    judge = add(
        "judge", _judge, "label answers, blind to whose they are, and see if the automatic labels agree"
    )
    judge.add_argument("run", metavar="RUN", help="a run's directory, topic or slug")
    judge.add_argument("--count", type=int, default=50, metavar="N", help="answers to label (50)")
    judge.add_argument("--json", action="store_true", help="print the agreement so far as JSON, ask nothing")
    benchmark = add("benchmark", _benchmark, "lm-evaluation-harness tasks with the adapter off and on")
    benchmark.add_argument("run", metavar="RUN", help="a run's directory, topic or slug")
    benchmark.add_argument("tasks", metavar="TASK", nargs="+", help="tasks, such as arc_easy")
    benchmark.add_argument("--include", type=Path, metavar="DIR", help="a folder with tasks of your own")
    benchmark.add_argument("--limit", type=int, metavar="N", help="questions a task, at most")
    benchmark.add_argument("--json", action="store_true", help="print JSON")


def _report(given: argparse.Namespace) -> int:
    from unlearn_mlx.reporting.report import write_report
    from unlearn_mlx.runs.finding import find_run

    print(write_report(find_run(given.run)))
    return 0


def _compare(given: argparse.Namespace) -> int:
    from unlearn_mlx.reporting.compare import as_rows, compare, compare_html
    from unlearn_mlx.runs.files import write_atomically
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.text.printable import as_json

    compared = compare([find_run(name) for name in given.runs])
    if given.html:
        write_atomically(given.html, compare_html(compared))
        print(f"The page: {given.html}", file=sys.stderr)
    if given.json:
        print(as_json(as_rows(compared)))
    else:
        _show_comparison(compared)
    return 0


def _judge(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli.judge import ask_for_labels
    from unlearn_mlx.errors import UserError
    from unlearn_mlx.evaluation.judge import agreements, items_to_label, read_judgements
    from unlearn_mlx.evaluation.schema import read_evaluation
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.text.printable import as_json

    if given.count < 1:
        raise UserError(f"--count {given.count}: label at least one answer")
    run = find_run(given.run)
    evaluation = read_evaluation(run.path)
    path = run.file("judgements.jsonl")
    if not given.json:
        ask_for_labels(items_to_label(evaluation, run.settings.seed, given.count), path)
    found = agreements(evaluation, read_judgements(path))
    if given.json:
        print(as_json([vars(agreement) for agreement in found]))
    for agreement in [] if given.json else found:
        kappa = "not defined" if agreement.kappa is None else f"{agreement.kappa:.2f}"
        print(f"{agreement.of}: {agreement.share:.0%} of {agreement.count} agree, Cohen's kappa {kappa}")
        for person, automatic, count in agreement.differing:
            print(f"  {count} x you: {person}, automatic: {automatic}")
    return 0


def _benchmark(given: argparse.Namespace) -> int:
    from rich.table import Table

    from unlearn_mlx.cli.consoles import data_console
    from unlearn_mlx.errors import UserError
    from unlearn_mlx.evaluation.harness import run_tasks
    from unlearn_mlx.inference.loading import load_by_name
    from unlearn_mlx.reporting.terminal import plain
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.text.printable import as_json

    if given.limit is not None and given.limit < 1:
        raise UserError(f"--limit {given.limit}: ask at least one question")
    run = find_run(given.run)
    with run.writing(), load_by_name(run.model_name) as model:
        told = run_tasks(model, run, given.tasks, given.include, given.limit)
    if given.json:
        print(as_json(told))
        return 0
    shown = Table(show_edge=False)
    for heading in ("task", "metric", "base", "adapter", "standard error"):
        shown.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for task, metrics in told["tasks"].items():
        for metric, of in metrics.items():
            error = "" if of["error"] is None else f"{of['error']:.3f}"
            shown.add_row(plain(task), plain(metric), f"{of['base']:.3f}", f"{of['adapter']:.3f}", error)
    data_console().print(shown)
    return 0


def _show_comparison(compared: "list[Compared]") -> None:
    """The table, and the plot below it."""
    from rich.table import Table

    from unlearn_mlx.cli.consoles import data_console
    from unlearn_mlx.reporting.compare import other_answers, same_questions, table, terminal_plot
    from unlearn_mlx.reporting.terminal import plain

    console = data_console()
    shown = Table(show_edge=False)
    shown.add_column("")
    for number, run in enumerate(compared, start=1):
        shown.add_column(plain(f"{number}: {run.name}"), justify="right")
    for name, values in table(compared):
        shown.add_row(name, *map(plain, values))
    console.print(shown)
    console.print()
    for line in terminal_plot(compared):
        console.print(plain(line), soft_wrap=True)
    console.print("\\[n]: no other run is better in both", style="dim")
    if told := other_answers(compared):
        print(plain(told), file=sys.stderr)
    if not same_questions(compared):
        print("The runs were not asked the same questions: compare with care.", file=sys.stderr)
