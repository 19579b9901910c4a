"""A run made of an adapter that comes with the project, so that it can be worked on as any other."""

import shutil
from typing import Any

from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import read_metrics
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES, adapter_sha256
from unlearn_mlx.runs.building import building
from unlearn_mlx.runs.files import read_json, write_json
from unlearn_mlx.runs.run import STAGES, Run, create_run, free_path, open_run
from unlearn_mlx.session.catalog import Entry, run_entries

RESULTS = {"evaluate": "evaluation.json", "audit": "audit.json"}


def made_of_shipped(entry: Entry) -> Run | None:
    """The run in this directory that was made of a shipped adapter; None where there is none yet."""
    runs = [other.run for other in run_entries() if other.run is not None]
    return next((run for run in runs if run.manifest.shipped_as == entry.key), None)


def run_of_shipped(entry: Entry) -> Run:
    """The run that was made of a shipped adapter, or a new one: its rows, its adapter and its results.

    Raises:
        UserError: where its model cannot be had, or nothing can be written here.
    """
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.models.registry import resolve_model

    if known := made_of_shipped(entry):
        return known
    source = resolve_model(entry.model_name)
    made_with: dict[str, Any] = read_metrics(entry.path / "metrics.json").settings
    settings = make_settings(**made_with)
    path = free_path(entry.topic_name)
    with building(path) as made:
        run = create_run(made, entry.topic, source.identity, settings, current_device().label)
        shutil.copytree(entry.rows, made, dirs_exist_ok=True)
        for name in ADAPTER_FILES:
            (made / "adapter").mkdir(exist_ok=True)
            shutil.copyfile(entry.path / name, made / "adapter" / name)
        if (entry.path / "events.jsonl").exists():
            shutil.copyfile(entry.path / "events.jsonl", made / "events.jsonl")
        run.manifest.shipped_as = entry.key
        sha256 = adapter_sha256(made / "adapter")
        done = list(STAGES[:-1])
        for stage, name in RESULTS.items():
            if (entry.path / name).exists():
                # Results of this very adapter, which bear its hash from now on: it may be replaced.
                write_json(made / name, {**read_json(entry.path / name), "adapter_sha256": sha256})
                done.append(stage)
        for stage in done:
            run.mark(stage, "done", **({"adapter": sha256} if stage == "train" else {}))
    return open_run(path)


def run_to_mend(entry: Entry) -> Run:
    """The run that an entry is, or the one that is made of it where it is shipped.

    Raises:
        UserError: where it is damaged, or cannot be made.
    """
    if entry.error:
        raise UserError(entry.error)
    return entry.run or run_of_shipped(entry)
