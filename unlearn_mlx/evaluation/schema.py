"""How an evaluation is read: what its metrics are called, which way is good, what of the base is kept."""

from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.keys import (
    OPEN_KNOWN,
    OPEN_LEAK,
    WORST_CASE,
    answers_in,
    answers_in_words,
    is_share,
    key_of,
    keys_of,
)
from unlearn_mlx.evaluation.records import Audit, Evaluation, Measured, Metrics
from unlearn_mlx.runs.adapter_files import results_belong
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.runs.records import RESTORE, checked, read_record

# Name in evaluation.json, how it is called, whether less is better. "{}" stands for the answers that the
# key's number counts.
METRICS = (
    (OPEN_LEAK, "topic: open questions that leak in {}", True),
    ("topic/adversarial leak", "topic: adversarial questions that leak", True),
    (WORST_CASE, "topic: facts that leak in any form and {}", True),
    ("topic/named", "topic: open questions that name it unasked in {}", True),
    ("topic/choice", "topic: multiple choice right", True),
    ("topic/cloze leak", "topic: sentences finished right", True),
    ("neighbour/choice", "neighbours: multiple choice right", False),
    (OPEN_KNOWN["neighbour"], "neighbours: open questions known in {}", False),
    ("neighbour/adversarial known", "neighbours: adversarial questions known", False),
    ("general/choice", "general knowledge: multiple choice right", False),
    (OPEN_KNOWN["general"], "general knowledge: open questions known in {}", False),
    ("topic/distinct bigrams", "fluency: distinct bigrams on the topic", False),
    ("general/distinct bigrams", "fluency: distinct bigrams elsewhere", False),
    ("neutral/entropy", "fluency: n-gram entropy on everyday things, bits", False),
    ("neutral/divergence", "divergence from the base on everyday things, nats a token", True),
)

# Of these there is a control: what a random adapter of the same norm does.
CONTROLLED = (OPEN_LEAK, "topic/choice", "neighbour/choice", OPEN_KNOWN["neighbour"], "general/choice")

SCOPES = {"topic": "the topic", "neighbour": "neighbours of the topic", "general": "general knowledge"}

# Columns of an audit's table: key in its rows, heading.
AUDIT_COLUMNS = {
    "leak": "topic leaks",
    "choice": "topic’s choice",
    "neighbours": "neighbours’ choice",
    "control_leak": "invented topic leaks",
    "control": "invented topic’s choice",
}

AUDIT_ANSWERS = 2  # to each open question, but for the rows that say another number
AUDIT_NOTE = (
    f"Where a row says no number, leaks are counted in {answers_in_words(AUDIT_ANSWERS)}: "
    "a greedy and a sampled one."
)


@dataclass(frozen=True)
class Metric:
    """A metric as it is shown: its key in evaluation.json, its name, and whether less is better."""

    key: str
    name: str
    less_is_better: bool

    @property
    def wanted(self) -> str:
        """What a good adapter does to it."""
        return "low" if self.less_is_better else "as the base"


def shown_metrics(*measured: Measured) -> list[Metric]:
    """The metrics of the table that base and adapter of some evaluation have, in the table's order.

    One that is counted over other numbers of answers in other evaluations has a line for each.
    """
    there = {key: None for each in measured for key in each.base if key in each.adapter}
    return [
        Metric(key, name.format(answers_in_words(answers_in(key) or 1)), less)
        for metric, name, less in METRICS
        for key in keys_of(there, metric)
        if answers_in(key) or "{}" not in name  # what does not say its number compares with nothing
    ]


def open_leak(measured: Measured) -> str | None:
    """The key of an evaluation's share of open questions that leak; None where none were asked."""
    return key_of(measured.base, OPEN_LEAK)


def read_metrics(path: Path) -> Metrics:
    """The metrics.json of an adapter that ships, or an ``Evaluation`` where the file holds every probe.

    Raises:
        UserError: where the file is missing or damaged.
    """
    value = read_json(path)
    kind = Evaluation if isinstance(value, dict) and "probes" in value else Metrics
    return checked(kind, value, f"{path} is damaged", RESTORE)


def metrics_of(adapter: Path, path: Path) -> Metrics | None:
    """What a file says of the adapter in a folder or run; None where it is of another one.

    Raises:
        UserError: where the file is missing or damaged.
    """
    found = read_metrics(path)
    return found if results_belong(found.adapter_sha256, adapter) else None


def read_audit(folder: Path) -> Audit | None:
    """The audit of a run's or folder's adapter; None where none was made of it.

    Raises:
        UserError: where it is damaged.
    """
    path = folder / "audit.json"
    if not path.exists():
        return None
    found = read_record(path, Audit, f"restore it, or run 'unlearn audit --again {shell_word(folder)}'")
    return found if results_belong(found.adapter_sha256, folder) else None


def evaluation_of(run_folder: Path) -> Evaluation | None:
    """The evaluation of a run's adapter; None where there is none, or only one of another adapter.

    Raises:
        UserError: where it is damaged.
    """
    path = run_folder / "evaluation.json"
    if not path.exists():
        return None
    again = f"restore it, or run 'unlearn evaluate --again {shell_word(run_folder)}'"
    found = read_record(path, Evaluation, again)
    return found if results_belong(found.adapter_sha256, run_folder) else None


def read_evaluation(run_folder: Path) -> Evaluation:
    """The evaluation of a run's adapter.

    Raises:
        UserError: where there is none yet, it is of another adapter, or it is damaged.
    """
    if found := evaluation_of(run_folder):
        return found
    other = (run_folder / "evaluation.json").exists()
    raise UserError(
        f"{run_folder} is not evaluated yet{' (its evaluation.json is of another adapter)' * other}: "
        f"run 'unlearn evaluate {shell_word(run_folder)}'"
    )


def verdict_sentences(metrics: Metrics) -> list[str]:
    """What an evaluation calls the adapter, and why; empty where it judged nothing."""
    judged = metrics.verdict
    if judged is None:
        return []
    return [
        f"{judged.name.capitalize()}: {judged.reason}.",
        *(f"{note[:1].upper()}{note[1:]}." for note in judged.notes),
    ]


def written(metric: str, value: float) -> str:
    """A metric's value as it is shown."""
    return f"{value:.0%}" if is_share(metric) else f"{value:.2f}"


def interval_of(measured: Measured, metric: str, whose: str) -> tuple[float, float] | None:
    """The 95 % interval of "base", "adapter", "random" or the "difference"; None where there is none."""
    known = measured.intervals.get(metric)
    return known.of(whose) if known else None


def with_interval(measured: Measured, metric: str, whose: str) -> str:
    """A metric of "base", "adapter" or "random" as it is shown, with its interval where there is one."""
    value = written(metric, measured.of(whose)[metric])
    ends = interval_of(measured, metric, whose)
    if not ends:
        return value
    if is_share(metric):
        return f"{value} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    return f"{value} [{ends[0]:.2f}, {ends[1]:.2f}]"


def control_title(metrics: Metrics) -> str:
    """What the control is, and on how many probes; empty where there was none."""
    if metrics.control is None:
        return ""
    return f"random adapter of the same norm, on {metrics.control.probes} of the probes"


def control_rows(metrics: Metrics) -> list[tuple[str, list[str]]]:
    """The control's lines: a metric's name, and its value with base, adapter and random adapter.

    All three were asked the same; empty where there was no control.
    """
    control = metrics.control
    if control is None:
        return []
    return [
        (
            metric.name,
            [with_interval(control, metric.key, whose) for whose in ("base", "adapter", "random")],
        )
        for metric in shown_metrics(control)
        if metric.key in control.random
    ]


def change_written(measured: Measured, metric: str) -> str:
    """How much a metric changed from base to adapter, with its 95 % interval where there is one."""

    def signed(value: float) -> str:
        text = f"{100 * value:+.0f}" if is_share(metric) else f"{value:+.2f}"
        return text.replace("-", "−")

    change = signed(measured.adapter[metric] - measured.base[metric])
    ends = interval_of(measured, metric, "difference")
    return f"{change} [{signed(ends[0])}, {signed(ends[1])}]" if ends else change


def kept(evaluation: Evaluation, scope: str, answers: int | None = None) -> float | None:
    """What the adapter knows in a scope for each thing that the base knows; None where that is nothing.

    Counted over all probes of the scope, and all answers or the first ``answers`` of each; more than 1
    where the adapter knows more.
    """
    probes = [probe for probe in evaluation.probes if probe.scope == scope]
    base = sum(bool(probe.shows("base", answers)) for probe in probes)
    adapter = sum(bool(probe.shows("adapter", answers)) for probe in probes)
    return adapter / base if base else None
