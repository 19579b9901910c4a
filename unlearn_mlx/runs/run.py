"""A run directory: the one place where a run's stages, its faces and its user meet."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearn_mlx import __version__
from unlearn_mlx.config import Settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import append_rows, write_atomically, write_json
from unlearn_mlx.runs.records import (
    FORMAT,
    Event,
    Manifest,
    ModelIdentity,
    Stage,
    checked,
    read_events,
    read_manifest,
)
from unlearn_mlx.topics import Topic, former_slug_of, load_topic, slug_of

STAGES = ("questions", "answers", "train", "evaluate")
AFTER = ("audit",)  # stages that a run is whole without
RUNS = Path("runs")


@dataclass
class Run:
    """A run directory."""

    path: Path
    manifest: Manifest

    @property
    def topic(self) -> Topic:
        """The topic as it stands in the run's file, with what the user changed."""
        return load_topic(self.path / "topic.toml")

    @property
    def settings(self) -> Settings:
        """The settings the run was made with.

        Raises:
            UserError: where this version does not know one, or its value.
        """
        where = f"{self.path / 'manifest.json'}, settings"
        return checked(Settings, self.manifest.settings, where, "restore it, or use '--out' for a new run")

    @property
    def model_name(self) -> str:
        """The model's name, as resolve_model takes it."""
        return self.manifest.model.name

    @property
    def has_adapter(self) -> bool:
        """Whether training has finished."""
        return (self.path / "adapter" / "adapters.safetensors").exists()

    def file(self, *names: str) -> Path:
        """A path inside the run."""
        return self.path.joinpath(*names)

    def save_manifest(self) -> None:
        """Write the manifest."""
        write_json(self.path / "manifest.json", self.manifest.as_row())

    def stage_is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return self.state_of(stage) == "done"

    def state_of(self, stage: str) -> str:
        """A stage's state; empty where it was never begun."""
        known = self.manifest.stages.get(stage)
        return known.state if known else ""

    def mark(self, stage: str, state: str, **facts: Any) -> None:
        """Note a stage's state in the manifest and as an event."""
        known = self.manifest.stages.get(stage)
        self.manifest.stages[stage] = Stage(**{**(known.as_row() if known else {}), "state": state, **facts})
        self.save_manifest()
        self.event(stage, "stage", state=state, **facts)

    def event(self, stage: str, kind: str, **facts: Any) -> None:
        """Append one line of progress."""
        append_rows(
            self.path / "events.jsonl",
            [{"time": round(time.time(), 3), "stage": stage, "kind": kind, **facts}],
        )

    def events(self) -> list[Event]:
        """All progress so far.

        Raises:
            UserError: naming a line that holds something else.
        """
        return read_events(self.path / "events.jsonl")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer of this run.

        Raises:
            UserError: where another process is.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process works on {self.path}: wait for it, or use '--out' for a second run"
            ) from None
        try:
            yield
        finally:
            lock.release()


def save_topic(path: Path, topic: Topic) -> None:
    """Write a topic for the user to read and edit."""
    write_atomically(path, topic.to_toml())


def run_path(topic_name: str, out: Path | None = None) -> Path:
    """Where a topic's run lies: also where an earlier version has put it."""
    if out is not None:
        return out
    path, former = RUNS / slug_of(topic_name), RUNS / (former_slug_of(topic_name) or "-")
    if former != path and not path.exists() and os.path.exists(former / "manifest.json"):
        is_this_topic = read_manifest(former / "manifest.json").topic == topic_name
        return former if is_this_topic else path
    return path


def is_free(path: Path) -> bool:
    """Whether a run can be made there: nothing is in the place, or a topic file at most."""
    if not path.is_dir():
        return not path.exists()
    return all(entry.name == "topic.toml" for entry in path.iterdir())


def create_run(path: Path, topic: Topic, model: dict[str, Any], settings: Settings, device: str) -> Run:
    """Make a run directory, or open the one that is there if it is the same work.

    Raises:
        UserError: where the directory belongs to another topic, model or settings.
    """
    if (path / "manifest.json").exists():
        run = open_run(path)
        known = run.manifest
        if known.topic != topic.name:
            raise UserError(f"{path} belongs to the topic '{known.topic}': use '--out' for another directory")
        if known.model.name != model["name"] or known.model.sha256 != model["sha256"]:
            raise UserError(
                f"{path} was made with other weights ('{known.model.name}'): "
                f"use '--model {known.model.name}' or '--out'"
            )
        wanted = settings.model_dump()
        differing = [key for key, value in known.settings.items() if wanted.get(key) != value]
        if differing:
            key = differing[0]
            now = f"not {wanted[key]}" if key in wanted else "which this version does not know"
            raise UserError(
                f"{path} was made with --{key.replace('_', '-')} {known.settings[key]}, {now}: "
                "use '--out' for another directory, or delete this one"
            )
        return run
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: use '--out' for a directory")
    if not is_free(path):
        raise UserError(f"{path} is not empty and no run: use '--out' for another directory")
    manifest = Manifest(
        format=FORMAT,
        topic=topic.name,
        model=ModelIdentity(**model),
        settings=settings.model_dump(),
        device=device,
        versions=package_versions(),
        stages={},
    )
    run = Run(path, manifest)
    if not (path / "topic.toml").exists():
        save_topic(path / "topic.toml", topic)
    run.save_manifest()
    return run


def open_run(path: Path) -> Run:
    """Open an existing run.

    Raises:
        UserError: where there is none, or a newer version made it.
    """
    if not (path / "manifest.json").exists():
        known = [other.parent.name for other in sorted(RUNS.glob("*/manifest.json"))]
        hint = f"there are {', '.join(known)}" if known else "make one with 'unlearn run TOPIC'"
        raise UserError(f"no run at {path}: {hint}")
    return Run(path, read_manifest(path / "manifest.json"))


def find_run(name: str) -> Run:
    """A run by its path, its topic's name or slug."""
    if os.path.exists(os.path.join(name, "manifest.json")):  # False for a name too long for a path
        return open_run(Path(name))
    return open_run(run_path(name) if slug_of(name) else RUNS / "-")


def package_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    versions = {"unlearn-mlx": __version__, "python": platform.python_version()}
    for package in ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


@dataclass
class Work:
    """What every stage is given: where to write, when to stop, and who works beside it."""

    run: Run
    settings: Settings
    is_cancelled: Callable[[], bool] = lambda: False
    # A WorkerPool of compute/workers.py, which stands above this file; None has all work done here.
    workers: Any = None

    def progress(self, stage: str, done: int, total: int, unit: str, **facts: Any) -> None:
        """Say how far a stage is."""
        self.run.event(stage, "progress", done=done, total=total, unit=unit, **facts)
