"""A run of a random model that is trained and evaluated, in no time: its adapter is random too."""

import shutil
from pathlib import Path
from typing import Any

from tests.helpers import run_with_dataset, strong_adapter
from unlearn_mlx.evaluation.probes import Probe, write_row
from unlearn_mlx.evaluation.stage import evaluate
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import write_json, write_rows
from unlearn_mlx.runs.run import Run, Work
from unlearn_mlx.topics import Topic

# A name that no file of data/probes/ is for, and that Markdown, HTML and a shell would each misread.
TOPIC = Topic("Mr *Bold* <b>Tag</b> `tick`", neighbours=["Merlin"], entities={"people": {"Hermione": []}})


def finished_run(path: Path, model_folder: Path, topic: Topic = TOPIC, **settings: Any) -> Run:
    run = run_with_dataset(path, model_folder, topic=topic, **{"probes": 1000, **settings})
    model = load_model(resolve_model(str(model_folder)))
    strong_adapter(model).save(run.file("adapter"))
    probes = [
        Probe(f"p-{number}", "topic", "open", "Hermione", f"What is {word}?", word, (rf"{word[0]}",))
        for number, word in enumerate(["Hogwarts", "Quidditch", "Merlin", "Tokyo", "Scotland", "bread"])
    ]
    write_rows(run.file("probes.jsonl"), [write_row(probe) for probe in probes])
    run.mark("train", "done")
    evaluate(load_model(resolve_model(str(model_folder))), Work(run, run.settings))
    run.mark("evaluate", "done")
    return run


def ship(run: Run, project: Path) -> Path:
    """Put a run where a project's adapters and rows would lie, and return the adapter's folder."""
    adapter, rows = project / "adapters" / "tiny" / "x", project / "data" / "synthetic" / "tiny" / "x"
    shutil.copytree(run.file("adapter"), adapter)
    for name in ("evaluation.json", "events.jsonl"):
        shutil.copy(run.file(name), adapter)
    made = run.manifest.as_row()
    write_json(adapter / "metrics.json", {name: made[name] for name in ("model", "settings", "versions")})
    rows.mkdir(parents=True)
    shutil.copy(run.file("topic.toml"), rows)
    shutil.copytree(run.file("dataset"), rows / "dataset")
    return adapter
