"""A run directory: the one place where a run's stages, its faces and its user meet."""

import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unlearn_mlx import __version__
from unlearn_mlx.config import Settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES, adapter_sha256, is_adapter
from unlearn_mlx.runs.building import leftovers_below, remove
from unlearn_mlx.runs.commands import import_command, making_command, shell_word
from unlearn_mlx.runs.files import append_rows, is_of_the_system, write_atomically, write_json
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
from unlearn_mlx.runs.writing import locked_run
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import Topic, checked_name, former_slug_of, load_topic, shipped_topic, slug_of

STAGES = ("questions", "answers", "train", "evaluate")
AFTER = ("audit",)  # stages that a run is whole without
RUNS = Path("runs")
MOST_RUNS = 100  # on a topic, before a new one is refused a directory
TELL_EVERY = 2.0  # seconds between two events of progress that is made meanwhile
LOWER_RATE = 5  # what a learning rate that was too high is divided by

RESULTS = ("evaluation.json", "audit.json", "report.html")  # of the adapter that is there

# What a stage leaves behind, without which it is to be done again.
MADE = {
    "questions": ["questions.jsonl"],
    "answers": ["dataset/train.jsonl"],
    "train": [f"adapter/{name}" for name in ADAPTER_FILES],
    "evaluate": ["evaluation.json"],
    "audit": ["audit.json"],
}


@dataclass
class Run:
    """A run directory."""

    path: Path
    manifest: Manifest

    @property
    def topic(self) -> Topic:
        """The topic as it stands in the run's file, with what the user changed.

        Raises:
            UserError: where the file is missing or damaged.
        """
        path = self.file("topic.toml")
        if not path.exists():
            raise UserError(f"{path} is missing: '{self.making_command}' makes it again")
        return load_topic(path)

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
        """Whether training has finished, and what it made is there."""
        return self.stage_is_done("train") and is_adapter(self.file("adapter"))

    @property
    def is_imported(self) -> bool:
        """Whether somebody else trained its adapter."""
        return bool(self.manifest.imported_from)

    @property
    def folders(self) -> list[Path]:
        """The folders that its files lie in."""
        return [self.path]

    @property
    def making_command(self) -> str:
        """The command that goes on with it; done already, it makes again what is missing."""
        return making_command(self.manifest.topic, self.model_name, self.manifest.settings, self.path)

    def stage_command(self, stage: str) -> str:
        """The command that does a stage, and whatever must be done before it."""
        every = (*STAGES, *AFTER)
        earlier = every[: every.index(stage)]
        if earlier and all(self.stage_is_done(each) for each in earlier):
            return f"unlearn {stage} {shell_word(self.path)}"
        return self.making_command

    def way_to_adapter(self, again: bool = False) -> str:
        """What to do for its adapter, in words; ``again`` where one is there that is good for nothing."""
        if self.is_imported:
            came = import_command(
                self.manifest.imported_from, self.manifest.topic, self.model_name, self.path
            )
            return f"delete the directory, then run '{came}'"
        return f"run '{self.stage_command('train')}{' --again' * again}'"

    @property
    def gentler_training(self) -> str:
        """The command that trains with a lower rate, where the one that it has is too much."""
        rate = self.settings.learning_rate / LOWER_RATE
        return f"{self.stage_command('train')} --again --learning-rate {rate:g}"

    @property
    def has_other_adapter(self) -> bool:
        """Whether its adapter is not the one that its training left: it was replaced, or is damaged."""
        trained = self.manifest.stages.get("train")
        known = (trained.as_row() if trained else {}).get("adapter", "")
        return bool(known) and known != adapter_sha256(self.file("adapter"))

    def finished_adapter(self) -> Path:
        """The folder of its adapter.

        Raises:
            UserError: where there is none yet, or training goes on: it would be another one later.
        """
        if self.has_adapter:
            return self.file("adapter")
        state = "is not trained to the end" if is_adapter(self.file("adapter")) else "has no adapter"
        raise UserError(f"{self.path} {state}: {self.way_to_adapter()} first")

    def file(self, *names: str) -> Path:
        """A path inside the run."""
        return self.path.joinpath(*names)

    def save_manifest(self) -> None:
        """Write the manifest."""
        write_json(self.path / "manifest.json", self.manifest.as_row())

    def stage_is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return self.state_of(stage) == "done"

    def lacks_result_of(self, stage: str) -> bool:
        """Whether a file is gone that a stage has left behind; an import has no rows to train on."""
        needed = [] if stage == "answers" and self.is_imported else MADE[stage]
        return not all(self.file(name).exists() for name in needed)

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

    def check_own(self) -> None:
        """Refuse what may not be changed.

        Raises:
            UserError: never of a run; of what comes with the project (``ShippedRun``).
        """

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer of this run. What the last one wrote is read, and what it left is removed.

        Raises:
            Busy: where another process is.
        """
        with locked_run(self.path):
            self.manifest = read_manifest(self.path / "manifest.json")
            remove(self.leftovers())
            yield

    def leftovers(self) -> list[Path]:
        """What nothing needs any longer: of processes that were killed, and of stages that are done."""
        found = leftovers_below(self.path)
        if self.stage_is_done("train"):
            found += [path for path in [self.file("checkpoints")] if path.exists()]
        if self.stage_is_done("evaluate"):
            found += sorted(self.file("journal").glob("evaluation-*.jsonl"))
        return found


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
        return not os.path.lexists(path)
    return all(entry.name == "topic.toml" or is_of_the_system(entry.name) for entry in path.iterdir())


def free_path(name: str, taken: Collection[Path] = ()) -> Path:
    """A directory for a new run on a topic: the usual one, or the first with a number that is free.

    Raises:
        UserError: for a name that cannot be a topic's.
    """
    name = checked_name(name)
    shipped = shipped_topic(name)
    usual = run_path(shipped.name if shipped else name)
    for number in range(1, MOST_RUNS):
        path = usual if number == 1 else usual.with_name(f"{usual.name}-{number}")
        if path not in taken and is_free(path):
            return path
    raise UserError(f"there are too many runs on '{name}': delete some of {usual}-*")


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
        _take_model(run, model)
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
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there: make that first")
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


def _take_model(run: Run, model: dict[str, Any]) -> None:
    """Let a run go on with a model: its own.

    As long as no stage has begun, its weights may be others: a folder was half fetched, and is whole now.

    Raises:
        UserError: for another model, or other weights than the run was made with.
    """
    known = run.manifest.model
    if known.name != model["name"]:
        raise UserError(
            f"{run.path} was made with other weights ('{known.name}'): "
            f"use '--model {shell_word(known.name)}', or '--out' for another directory"
        )
    if known.sha256 != model["sha256"] and run.manifest.stages:
        raise UserError(
            f"{run.path} was made with other weights of {known.name}: use '--out' for another directory, "
            "or delete this one"
        )
    if known.sha256 != model["sha256"]:
        with run.writing():
            run.manifest.model = ModelIdentity(**model)
            run.save_manifest()


def open_run(path: Path) -> Run:
    """Open an existing run.

    Raises:
        UserError: where there is none, or a newer version made it.
    """
    if not os.path.exists(path / "manifest.json"):  # False for a name too long for a path
        near = path.parent if os.path.isdir(path.parent) else RUNS
        known = [other.parent.name for other in sorted(near.glob("*/manifest.json"))]
        hint = f"there are {', '.join(known)}" if known else "make one with 'unlearn run TOPIC'"
        raise UserError(f"no run at {one_line(str(path))[:200]}: {hint}")
    return Run(path, read_manifest(path / "manifest.json"))


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
    memory_facts: Callable[[], dict[str, int]] = dict  # of compute/memory.py, said with all progress

    def progress(self, stage: str, done: int, total: int, unit: str, **facts: Any) -> None:
        """Say how far a stage is."""
        self.run.event(stage, "progress", done=done, total=total, unit=unit, **self.memory_facts(), **facts)


def now_and_then(tell: Callable[[int], None]) -> Callable[[int], None]:
    """``tell``, but that it is called every few seconds at the most."""
    last = time.monotonic()

    def told(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_EVERY:
            last = time.monotonic()
            tell(done)

    return told
