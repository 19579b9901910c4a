"""A run by what its user calls it: what every command takes for RUN."""

import os
from pathlib import Path

from unlearn_mlx.runs.run import RUNS, Run, open_run, run_path
from unlearn_mlx.runs.shipped import shipped_folder, shipped_run
from unlearn_mlx.topics import slug_of


def find_run(name: str) -> Run:
    """A run by its path, its topic's name or slug; a shipped adapter by its folder."""
    if os.path.exists(os.path.join(name, "manifest.json")):  # False for a name too long for a path
        return open_run(Path(name))
    if folder := shipped_folder(name):
        return shipped_run(folder)
    path = run_path(name) if slug_of(name) else RUNS / "-"
    return open_run(Path(name) if _is_path(name) and not path.exists() else path)


def _is_path(name: str) -> bool:
    """Whether a name that is no run's can only be meant as a path: "AC/DC" is a topic, "runs/x" is none."""
    begins = name.partition(os.sep)[0]
    return os.path.isdir(name) or (os.sep in name and (begins in ("", ".", "..") or os.path.isdir(begins)))
