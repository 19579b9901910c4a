"""Make what the project ships: ``python -m tools.shipped [TOPIC ...] [-- options of unlearn run]``.

Each topic is made by ``unlearn run`` into runs/shipped/<topic>; its rows go to data/synthetic/, its
adapter with a card to adapters/, and the tables of all shipped topics into the README and docs/evaluation.md.
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
    read_audit,
    read_metrics,
    shown_metrics,
    written,
)
from unlearn_mlx.models.registry import NAMED_MODELS
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.sharing.model_card import adapter_commands, reproduction_section
from unlearn_mlx.sharing.recipe import FORMAT, Recipe, rows_sha256
from unlearn_mlx.topics import load_topic, shipped_topics

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
ROW_FILES = (
    "topic.toml",
    "questions.jsonl",
    "retain_questions.jsonl",
    "base_answers.jsonl",
    "recalled.jsonl",
    "answers.jsonl",
)
ADAPTERS = ROOT / "adapters" / MODEL
TABLE, AUDIT_TABLE = "table", "audit"  # marks in the documents
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

IN_AUDIT = (
    "base",
    "adapter",
    "fused, 8 bits",
    "fused, 4 bits",
    "relearned on general text",
    "relearned on neighbours",
    "32 sampled answers",
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
    adapter = ADAPTERS / slug
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
        "adapter_sha256": adapter_sha256(adapter),
        "settings": manifest["settings"],
        "versions": manifest["versions"],
        "device": manifest["device"],
        "computation": manifest["computation"],
        "command": " ".join(["unlearn", "run", f'"{topic.name}"', "--model", MODEL, *options]),
        "base": evaluation["base"],
        "adapter": evaluation["adapter"],
        "control": evaluation["control"],
        "nearest_training_question": evaluation["nearest_training_question"],
    }
    (adapter / "metrics.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    metrics = read_metrics(adapter / "metrics.json")
    (adapter / "README.md").write_text(card(slug, metrics, audited))


def card(slug: str, metrics: Metrics, audited: str) -> str:
    """The card of a topic's adapter."""
    name = load_topic(shipped_topics()[slug]).name
    prompt = shell_word(f"What do you know about {name}?")
    place = f"adapters/{MODEL}/{slug}"
    commands = adapter_commands(NAMED_MODELS[MODEL], MODEL, place, prompt)
    usage = "\n".join(f"    {command}" for command in commands)
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

{reproduction_section(recipe(slug, metrics), place, "In a clone of unlearn-mlx:")}

## How to use it

In a clone of unlearn-mlx, in the environment that `uv sync` makes:

{usage}
"""


def recipe(slug: str, metrics: Metrics) -> Recipe:
    """What the adapter was made with; versions before this one wrote down less of it."""
    assert metrics.model is not None
    rows = ROOT / "data" / "synthetic" / MODEL / slug
    return Recipe(
        format=FORMAT,
        topic=load_topic(rows / "topic.toml").to_table(),
        model=metrics.model,
        settings=metrics.settings,
        versions=metrics.versions,
        rows_sha256=rows_sha256(rows),
        adapter_sha256=metrics.adapter_sha256 or adapter_sha256(ADAPTERS / slug),
        **{key: value for key in ("device", "computation") if (value := getattr(metrics, key))},
    )


def _noise(metrics: Metrics) -> str:
    """The control's table; nothing where there was none."""
    rows = control_rows(metrics)
    if not rows:
        return ""
    head = [f"| {control_title(metrics)} | base | adapter | random |", "|---|---|---|---|"]
    return "\n".join(["", *head, *(f"| {name} | {' | '.join(values)} |" for name, values in rows), ""])


def write_tables() -> None:
    """Put the shipped topics' metrics into the README, and their audits into docs/evaluation.md."""
    names = _names()
    measured = [read_metrics(ADAPTERS / slug / "metrics.json") for slug in names]
    rows = [
        [metric.name]
        + [
            " → ".join(written(metric.key, each.of(whose)[metric.key]) for whose in ("base", "adapter"))
            for each in measured
        ]
        for metric in _in_table(*measured)
    ]
    readme = ROOT / "README.md"
    table = _table(["measure, base → adapter", *names.values()], rows)
    readme.write_text(_between(readme.read_text(), TABLE, table))
    audits = [read_audit(ADAPTERS / slug) for slug in names]
    known = [audit for audit in audits if audit is not None]
    if len(known) == len(audits):
        leaks = [{row.name: row.leak for row in audit.rows} for audit in known]
        shared = [name for name in IN_AUDIT if all(name in each for each in leaks)]
        found = [[name, *(f"{each[name]:.0%}" for each in leaks)] for name in shared]
        table = _table(["open questions that leak", *names.values()], found)
        evaluation = ROOT / "docs" / "evaluation.md"
        evaluation.write_text(_between(evaluation.read_text(), AUDIT_TABLE, table))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _between(text: str, mark: str, block: str) -> str:
    """The text with the block between a mark's two lines."""
    start, end = f"<!-- {mark}: tools/shipped.py -->", f"<!-- end of {mark} -->"
    before, _, rest = text.partition(start)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.partition(end)[2]}"


def _in_table(*measured: Metrics) -> list[Metric]:
    """The shown metrics of IN_TABLE."""
    return [metric for metric in shown_metrics(*measured) if metric.key.partition(", any of")[0] in IN_TABLE]


def _names() -> dict[str, str]:
    return {
        slug: load_topic(path).name
        for slug, path in shipped_topics().items()
        if (ADAPTERS / slug / "metrics.json").exists()
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    options = given[given.index("--") + 1 :] if "--" in given else []
    topics = given[: given.index("--")] if "--" in given else given
    slugs = topics or list(shipped_topics())
    for slug in slugs:  # the base is asked anew: a run would take what it said from what ships
        (ADAPTERS / slug / "evaluation.json").unlink(missing_ok=True)
    for slug in slugs:
        make(slug, options)
    write_tables()
