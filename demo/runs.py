"""Runs that the demo starts: child processes that outlive the page, and what their events say."""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import streamlit as st

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import STAGES, Run, run_path
from unlearn_mlx.topics import checked_name

FRESH = 30  # seconds: a run of another program that told of itself since is under way


@dataclass
class Child:
    """An ``unlearn run`` that this process started, and what it says on its standard error."""

    process: "subprocess.Popen[bytes]"
    output: IO[bytes]

    @property
    def is_alive(self) -> bool:
        """Whether it still works."""
        return self.process.poll() is None

    def complaint(self) -> str:
        """The line that says why it ended badly; empty if it did not."""
        if self.is_alive or not self.process.returncode:
            return ""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").splitlines()
        said = [line.removeprefix("unlearn: ") for line in lines if line.startswith("unlearn: ")]
        return said[-1] if said else f"the run ended with code {self.process.returncode}"


@dataclass
class Children:
    """The runs that this process started, by their directory; shared by all tabs."""

    by_path: dict[Path, Child] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def working(self) -> list[Path]:
        """The directories of those that work."""
        return [path for path, child in self.by_path.items() if child.is_alive]

    def start(self, topic: str, path: Path, options: list[str]) -> None:
        """Start ``unlearn run`` on a topic, into a directory.

        Raises:
            UserError: for a bad name, or while another run works: two at once would both be slow.
        """
        with self.lock:
            if working := self.working():
                raise UserError(f"{working[0]} is being made: wait for it, or stop it first")
            output = tempfile.TemporaryFile()  # noqa: SIM115 (read for as long as the run is shown)
            process = subprocess.Popen(
                [sys.executable, "-m", "unlearn_mlx.cli", "run", *options, "--out", path, "--", topic],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                # A Ctrl-C in the terminal ends the demo, not the run.
                start_new_session=True,
            )
            self.by_path[path] = Child(process, output)

    def stop(self, path: Path) -> None:
        """Have a run stop at its next safe point."""
        if (child := self.by_path.get(path)) and child.is_alive:
            child.process.send_signal(signal.SIGINT)


@st.cache_resource(show_spinner=False)
def children() -> Children:
    """The runs that this process started, for all of its tabs."""
    return Children()


def free_path(topic: str) -> Path:
    """A directory for a new run on a topic.

    Raises:
        UserError: for a name that cannot be a topic's.
    """
    first = run_path(checked_name(topic))
    taken = set(children().by_path)
    candidates = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 100))]
    for path in candidates:
        if path not in taken and not path.exists():
            return path
    raise UserError(f"there are too many runs on '{topic}': delete some of {first}-*")


def options_of(run: Run) -> list[str]:
    """The options that go on with a run as it was started."""
    options = ["--model", run.model_name]
    for name, value in run.manifest.settings.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    return options


def is_working(run: Run) -> bool:
    """Whether a process works on the run: ours, or another that told of itself lately."""
    if run.path in children().by_path:
        return children().by_path[run.path].is_alive
    if not any(stage.state == "running" for stage in run.manifest.stages.values()):
        return False
    events = run.file("events.jsonl")
    return events.exists() and time.time() - events.stat().st_mtime < FRESH


def is_done(run: Run) -> bool:
    """Whether every stage is done."""
    return all(run.stage_is_done(stage) for stage in STAGES)
