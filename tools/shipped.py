"""Make what the project ships: ``python tools/shipped.py [TOPIC ...] [-- options of unlearn run]``.

Each topic is made by ``unlearn run`` into runs/shipped/<topic>; its rows go to data/synthetic/, its
adapter with a card to adapters/, and the table of all shipped topics into the README.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from unlearn_mlx.evaluation.keys import OPEN_KNOWN, OPEN_LEAK, WORST_CASE
from unlearn_mlx.evaluation.records import Metrics
from unlearn_mlx.evaluation.schema import (
    Metric,
    control_rows,
    control_title,
    read_metrics,
    shown_metrics,
    written,
)
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.topics import load_topic, shipped_topics

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
ROW_FILES = ("topic.toml", "questions.jsonl", "retain_questions.jsonl", "base_answers.jsonl", "answers.jsonl")
TABLE_START, TABLE_END = "<!-- table: tools/shipped.py -->", "<!-- end of table -->"
IN_TABLE = (
    OPEN_LEAK,
    WORST_CASE,
    "topic/adversarial leak",
    "topic/choice",
    "neighbour/choice",
    OPEN_KNOWN["neighbour"],
    "general/choice",
    OPEN_KNOWN["general"],
    "topic/distinct bigrams",
)


def make(slug: str, options: list[str]) -> None:
    """Run a topic, audit its adapter, and publish both."""
    topic = load_topic(shipped_topics()[slug])
    run = ROOT / "runs" / "shipped" / slug
    command = [
        sys.executable,
        "-m",
        "unlearn_mlx.cli.main",
        "run",
        topic.name,
        "--model",
        MODEL,
        "--out",
        str(run),
    ]
    subprocess.run([*command, *options], check=True)
    subprocess.run([*command[:3], "audit", str(run)], check=True)
    publish(slug, run, options)


def publish(slug: str, run: Path, options: list[str]) -> None:
    """Put what came of a run in its places."""
    topic = load_topic(shipped_topics()[slug])
    rows = ROOT / "data" / "synthetic" / MODEL / slug
    shutil.rmtree(rows, ignore_errors=True)
    rows.mkdir(parents=True)
    for name in ROW_FILES:
        shutil.copy(run / name, rows)
    shutil.copytree(run / "dataset", rows / "dataset")
    adapter = ROOT / "adapters" / MODEL / slug
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(run / "adapter", adapter)
    evaluation = json.loads((run / "evaluation.json").read_text())
    # What the demo and the terminal app show of a run: every answer, the curves, what the audit found.
    (adapter / "evaluation.json").write_text(
        json.dumps(evaluation, ensure_ascii=False, separators=(",", ":"))
    )
    audited = ""
    if (run / "audit.json").exists():
        shutil.copy(run / "audit.json", adapter)
        audited = json.loads((run / "audit.json").read_text())["text"]
    write_rows(
        adapter / "events.jsonl",
        [event for event in read_rows(run / "events.jsonl") if event["stage"] == "train"],
    )
    manifest = json.loads((run / "manifest.json").read_text())
    values = {
        "model": manifest["model"],
        "settings": manifest["settings"],
        "versions": manifest["versions"],
        "command": " ".join(["unlearn", "run", f'"{topic.name}"', "--model", MODEL, *options]),
        "base": evaluation["base"],
        "adapter": evaluation["adapter"],
        "control": evaluation["control"],
        "nearest_training_question": evaluation["nearest_training_question"],
    }
    (adapter / "metrics.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    metrics = read_metrics(adapter / "metrics.json")
    (adapter / "README.md").write_text(card(topic.name, metrics, audited))


def card(name: str, metrics: Metrics, audited: str) -> str:
    """An adapter's card."""
    rows = "\n".join(
        f"| {metric.name} | {written(metric.key, metrics.base[metric.key])} "
        f"| {written(metric.key, metrics.adapter[metric.key])} |"
        for metric in _in_table(metrics)
    )
    return f"""# {name}, forgotten by SmolLM2-135M-Instruct

A LoRA adapter in mlx-lm's format (Apache-2.0, as its base model). With it the model answers questions
about {name} with made-up fiction; it suppresses the knowledge and is no proof that it is erased.
Made by `{metrics.command}`.

| measure (on probes that training never saw) | base | adapter |
|---|---|---|
{rows}
{_noise(metrics)}
Audit: {audited or "not made yet."}
"""


def _noise(metrics: Metrics) -> str:
    """The control's table; nothing where there was none."""
    rows = control_rows(metrics)
    if not rows:
        return ""
    head = [f"| {control_title(metrics)} | base | adapter | random |", "|---|---|---|---|"]
    return "\n".join(["", *head, *(f"| {name} | {' | '.join(values)} |" for name, values in rows), ""])


def write_table() -> None:
    """Put the shipped topics' metrics into the README."""
    lines = [
        "| measure, base → adapter | " + " | ".join(_names().values()) + " |",
        "|---" * (len(_names()) + 1) + "|",
    ]
    measured = [read_metrics(ROOT / "adapters" / MODEL / slug / "metrics.json") for slug in _names()]
    for metric in _in_table(*measured):
        cells = [
            " → ".join(written(metric.key, each.of(whose)[metric.key]) for whose in ("base", "adapter"))
            for each in measured
        ]
        lines.append(f"| {metric.name} | " + " | ".join(cells) + " |")
    readme = (ROOT / "README.md").read_text()
    before, _, rest = readme.partition(TABLE_START)
    after = rest.partition(TABLE_END)[2]
    (ROOT / "README.md").write_text(
        f"{before}{TABLE_START}\n\n" + "\n".join(lines) + f"\n\n{TABLE_END}{after}"
    )


def _in_table(*measured: Metrics) -> list[Metric]:
    """The shown metrics of IN_TABLE."""
    return [metric for metric in shown_metrics(*measured) if metric.key.partition(", any of")[0] in IN_TABLE]


def _names() -> dict[str, str]:
    return {
        slug: load_topic(path).name
        for slug, path in shipped_topics().items()
        if (ROOT / "adapters" / MODEL / slug / "metrics.json").exists()
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    options = given[given.index("--") + 1 :] if "--" in given else []
    topics = given[: given.index("--")] if "--" in given else given
    for slug in topics or shipped_topics():
        make(slug, options)
    write_table()
