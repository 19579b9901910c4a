"""The processes that work on runs: started here or by another program, found, paused, stopped, and their end.

A face never computes itself: what ends a worker leaves the face and the run directory as they are.
"""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.session.endings import BEGINS, LOG, STOPPED, Ending, ending_of, how_it_ended

WORKER = "unlearn_mlx.pipeline"  # the module that a worker runs
COMMAND = "unlearn_mlx.cli"
BEHIND = 10  # a worker's priority: where cores are few, keys and chat go before it


def start_worker(run: Path, stages: Sequence[str] = STAGES) -> "subprocess.Popen[bytes]":
    """Start the process that works on a run; its errors go to ``worker.log`` in the run."""
    with (run / LOG).open("ab") as log:
        log.write(f"{BEGINS}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
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

    def ending(self, was_stopped: bool) -> Ending | None:
        """How it ended, if it was asked to stop or went wrong; None while it works, and once it is done."""
        code = self.process.poll()
        if not code:
            return None
        if code == Cancelled.exit_code or (code < 0 and was_stopped):
            return STOPPED
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").splitlines()
        said = [line.removeprefix("unlearn: ") for line in lines if line.startswith("unlearn: ")]
        return Ending(said[-1] if said else f"the run {how_it_ended(code)}", True)


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

    def start_alone(
        self, run: Path, topic: str = "", options: Sequence[str] = (), stages: Sequence[str] = STAGES
    ) -> None:
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
                self.start(run, stages)

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

    def new_endings(self) -> dict[Path, Ending]:
        """How the workers that this program started and that ended since it was last asked did so."""
        ended = {folder: child for folder, child in list(self._own.items()) if child.poll() is not None}
        for folder, child in ended.items():
            self._own.pop(folder, None)
            self._endings[folder] = ending_of(folder, child.returncode, folder in self._stopping)
            self._stopping.discard(folder)
        return {folder: self._endings[folder] for folder in ended}

    def ending(self, run: Path) -> Ending | None:
        """How a run's last worker ended, as ``new_endings`` has told; None where nobody knows."""
        folder = run.resolve()
        if (making := self.makings.get(run)) and (ending := making.ending(folder in self._stopping)):
            return ending
        return self._endings.get(folder)

    def own_running(self) -> list[Path]:
        """The runs whose workers this program started and that still work."""
        return [folder for folder, child in list(self._own.items()) if child.poll() is None]

    def stop(self, run: Path, at_once: bool = False) -> None:
        """Ask a worker to stop at the next safe point, or end it at once. Works on a paused one too."""
        if process := self.process(run):
            self._stopping.add(run.resolve())
            with suppress(psutil.NoSuchProcess):
                # No SIGINT: what a shell started in the background, and its children, do not hear one.
                process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
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
        """Bytes that a worker takes of the machine's memory with the processes it started; 0 without one."""
        process = self.process(run)
        taken = 0
        with suppress(psutil.Error):
            for each in [process, *process.children(recursive=True)] if process else []:
                with suppress(psutil.Error):  # one that has just ended
                    taken += int(each.memory_info().rss)
        return taken
