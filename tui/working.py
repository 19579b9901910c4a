"""The processes that work on runs: started here or by another app, found, paused, stopped."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import psutil

from unlearn_mlx.pipeline import start_child
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.text.printable import one_line

MODULE = "unlearn_mlx.pipeline"
BEHIND = 10  # a worker's priority: where cores are few, keys and chat go before it


class Workers:
    """The workers that this app knows of, by run directory."""

    def __init__(self) -> None:
        self._own: dict[Path, Popen[bytes]] = {}
        self._others: dict[Path, psutil.Process] = {}

    def start(self, run: Path, stages: Sequence[str] = STAGES) -> None:
        """Start a worker on a run."""
        child = start_child(run, stages)
        with suppress(psutil.Error):
            psutil.Process(child.pid).nice(BEHIND)
        self._own[run.resolve()] = child

    def find(self) -> None:
        """Look for workers that others started. Takes tens of milliseconds: not for the screen's thread."""
        own = {child.pid for child in self._own.values()}
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if MODULE not in words or process.pid in own:
                continue
            try:
                folder = Path(process.cwd(), words[words.index(MODULE) + 1]).resolve()
            except (psutil.Error, IndexError):
                continue
            found[folder] = process
        self._others = found

    def process(self, run: Path) -> psutil.Process | None:
        """The process that works on a run, or None."""
        folder = run.resolve()
        child = self._own.get(folder)
        if child is not None and child.poll() is None:
            return psutil.Process(child.pid)
        other = self._others.get(folder)
        try:
            if other is not None and other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
                return other
        except psutil.Error:
            pass
        return None

    def own_ended(self) -> dict[Path, int]:
        """The exit codes of the workers that this app started and that ended since it was last asked."""
        ended = {folder: child.returncode for folder, child in self._own.items() if child.poll() is not None}
        for folder in ended:
            del self._own[folder]
        return ended

    def own_running(self) -> list[Path]:
        """The runs whose workers this app started and that still work."""
        return [folder for folder, child in self._own.items() if child.poll() is None]

    def stop(self, run: Path, at_once: bool = False) -> None:
        """Ask a worker to stop at the next safe point, or end it at once. Works on a paused one too."""
        if process := self.process(run):
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
