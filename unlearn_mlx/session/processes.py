"""The processes that work on runs: started here or by another program, found, paused, stopped, and their end.

A face never computes itself: what ends a worker leaves the face and the run directory as they are.
"""

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.text.printable import one_line

WORKER = "unlearn_mlx.pipeline"  # the module that a worker runs
COMMAND = "unlearn_mlx.cli"
BEHIND = 10  # a worker's priority: where cores are few, keys and chat go before it


def start_worker(run: Path, stages: Sequence[str] = STAGES) -> "subprocess.Popen[bytes]":
    """Start the process that works on a run; its errors go to ``worker.log`` in the run."""
    with (run / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(run), *stages],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A Ctrl-C of the terminal reaches the face alone, which passes it on once.
            start_new_session=True,
        )


@dataclass
class Making:
    """An ``unlearn run`` that makes its run first, and what it says on its standard error."""

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
        return said[-1] if said else f"the run {how_it_ended(self.process.returncode)}"


def start_making(topic: str, run: Path, options: Sequence[str]) -> Making:
    """Start ``unlearn run`` on a topic, into a directory: a model that is not here is fetched by it."""
    output = tempfile.TemporaryFile()  # noqa: SIM115 (read for as long as the run is shown)
    process = subprocess.Popen(
        [sys.executable, "-m", COMMAND, "run", *options, "--out", str(run), "--", topic],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=output,
        # A Ctrl-C in the terminal ends the face, not the run.
        start_new_session=True,
    )
    return Making(process, output)


class Workers:
    """The workers that this program knows of, by run directory. Threads may share it."""

    def __init__(self) -> None:
        self._own: dict[Path, subprocess.Popen[bytes]] = {}
        self._others: dict[Path, psutil.Process] = {}
        self._stopping: set[Path] = set()
        self._endings: dict[Path, Ending] = {}
        self._lock = threading.Lock()
        self.makings: dict[Path, Making] = {}  # by the directory as it was given

    def start(self, run: Path, stages: Sequence[str] = STAGES) -> None:
        """Start a worker on a run."""
        child = start_worker(run, stages)
        with suppress(psutil.Error):
            psutil.Process(child.pid).nice(BEHIND)
        folder = run.resolve()
        self._own[folder] = child
        self._stopping.discard(folder)
        self._endings.pop(folder, None)
        self.makings.pop(run, None)

    def start_alone(self, run: Path, topic: str = "", options: Sequence[str] = ()) -> None:
        """Start a worker on a run, or with ``topic`` the making of one, where nothing of ours works yet.

        Raises:
            UserError: while another run works: two at once would both be slow.
        """
        with self._lock:
            making = [path for path, making in self.makings.items() if making.is_alive]
            if working := [*making, *self.own_running()]:
                raise UserError(f"{working[0]} is being made: wait for it, or stop it first")
            if topic:
                self.makings[run] = start_making(topic, run, options)
            else:
                self.start(run)

    def find(self) -> None:
        """Look for workers that others started. Takes tens of milliseconds: not for the screen's thread."""
        own = {child.pid for child in list(self._own.values())}
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if WORKER not in words or process.pid in own:
                continue
            try:
                folder = Path(process.cwd(), words[words.index(WORKER) + 1]).resolve()
            except (psutil.Error, IndexError):
                continue
            found[folder] = process
        self._others = found

    def process(self, run: Path) -> psutil.Process | None:
        """The process that works on a run, or None."""
        folder = run.resolve()
        making = self.makings.get(run)
        for child in (self._own.get(folder), making.process if making else None):
            if child is not None and child.poll() is None:
                return psutil.Process(child.pid)
        other = self._others.get(folder)
        try:
            if other is not None and other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
                return other
        except psutil.Error:
            pass
        return None

    def is_working(self, run: Path) -> bool:
        """Whether a process works on a run."""
        return self.process(run) is not None

    def is_stopping(self, run: Path) -> bool:
        """Whether a run's worker was asked to stop and still works."""
        return run.resolve() in self._stopping and self.is_working(run)

    def is_own(self, run: Path) -> bool:
        """Whether the process that works on a run was started here."""
        making = self.makings.get(run)
        return run.resolve() in self.own_running() or (making is not None and making.is_alive)

    def new_endings(self) -> "dict[Path, Ending]":
        """How the workers that this program started and that ended since it was last asked did so."""
        ended = {folder: child for folder, child in list(self._own.items()) if child.poll() is not None}
        for folder, child in ended.items():
            self._own.pop(folder, None)
            self._endings[folder] = ending_of(folder, child.returncode, folder in self._stopping)
            self._stopping.discard(folder)
        return {folder: self._endings[folder] for folder in ended}

    def ending(self, run: Path) -> "Ending | None":
        """How a run's last worker ended, as ``new_endings`` has told; None where nobody knows."""
        if (making := self.makings.get(run)) and (complaint := making.complaint()):
            return Ending(complaint, True)
        return self._endings.get(run.resolve())

    def own_running(self) -> list[Path]:
        """The runs whose workers this program started and that still work."""
        return [folder for folder, child in list(self._own.items()) if child.poll() is None]

    def stop(self, run: Path, at_once: bool = False) -> None:
        """Ask a worker to stop at the next safe point, or end it at once. Works on a paused one too."""
        if process := self.process(run):
            self._stopping.add(run.resolve())
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if at_once else signal.SIGINT)
                process.resume()

    def is_paused(self, run: Path) -> bool:
        """Whether a worker stands still."""
        process = self.process(run)
        try:
            return process is not None and process.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def pause(self, run: Path) -> None:
        """Let a worker stand still where it is, or go on; its memory stays taken."""
        if process := self.process(run):
            with suppress(psutil.NoSuchProcess):
                (process.resume if self.is_paused(run) else process.suspend)()

    def running(self) -> list[Path]:
        """The runs at work, whoever started them."""
        return [folder for folder in {**self._own, **self._others} if self.process(folder)]

    def memory(self, run: Path) -> int:
        """Bytes that a worker takes of the machine's memory; 0 without one."""
        process = self.process(run)
        try:
            return int(process.memory_info().rss) if process else 0
        except psutil.Error:
            return 0


@dataclass(frozen=True)
class Ending:
    """How a worker ended, in a sentence; ``is_bad`` where it was neither done nor stopped."""

    text: str
    is_bad: bool = False


def ending_of(run: Path, code: int, was_stopped: bool) -> Ending:
    """How a worker ended that was or was not asked to stop, by its exit code and what it left behind."""
    if code == 0:
        return Ending("Done.")
    if code == Cancelled.exit_code or (code < 0 and was_stopped):
        return Ending("Stopped; what was finished is kept.")
    how = how_it_ended(code)
    if code == -signal.SIGKILL:
        return Ending(f"The worker {how}.", True)
    progress = Progress(run)
    progress.update()
    said = progress.error or last_words(run, progress.began) or "it left no log"
    return Ending(f"The worker {how}: {said}", True)


def how_it_ended(code: int) -> str:
    """What an exit code other than 0 says, after a subject."""
    if code < 0:
        # Nobody but the system kills a worker that was not asked to stop.
        return f"was killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return f"failed with code {code}"


def last_words(run: Path, since: float) -> str:
    """The last line that a worker wrote to its log, where that is newer than ``since``; else empty."""
    path = run / "worker.log"
    try:
        if path.stat().st_mtime < since:
            return ""
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return one_line(lines[-1])[:200] if lines else ""
