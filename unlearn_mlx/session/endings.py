"""How a worker ended, in a sentence: by its exit code, and by the last lines that it wrote to its log."""

import signal
from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.compute.limits import says_out_of_memory
from unlearn_mlx.compute.memory import out_of_memory
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.text.printable import one_line

LOG = "worker.log"
BEGINS = "--- worker "  # how the line starts that stands before a worker's own in the log
LAST_LINES = 20  # of a worker's log, where the GPU's complaint stands

# The system's, where memory runs out, and mlx's, whose arrays on a CPU are then none.
MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGSEGV)

# What Metal writes before it ends a process, and what a user can do. All of them leave the run to go on with.
RELAXED = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"
GPU_COMPLAINTS = {
    "Impacting Interactivity": "macOS ended the GPU's work because the screen had to wait for it. Let the "
    f"display sleep while a run works, or put {RELAXED} before the command",
    "GPU Timeout": f"macOS ended a piece of the GPU's work that took too long. Put {RELAXED} before the "
    "command, or make a new run of smaller pieces: --batch-size 2 and --out",
    "OutOfMemory": "the GPU's memory is full. Close other programs and go on, or make a new run of a smaller "
    "plan: --batch-size 2, or --model llama3.2-1b, and --out",
    "Resource limit": "Metal holds no more arrays at once. Go on: a new worker begins with none; if it comes "
    "again, make a new run of a smaller plan: --batch-size 2 and --out",
}
ALSO_WRITTEN = {"Insufficient Memory": "OutOfMemory"}


@dataclass(frozen=True)
class Ending:
    """How a worker ended, in a sentence; ``is_bad`` where it was neither done nor stopped."""

    text: str
    is_bad: bool = False


STOPPED = Ending("Stopped; what was finished is kept.")


def ending_of(run: Path, code: int, was_stopped: bool) -> Ending:
    """How a worker ended that was or was not asked to stop, by its exit code and what it left behind."""
    if code == 0:
        return Ending("Done.")
    if code == Cancelled.exit_code or (code < 0 and was_stopped):
        return STOPPED
    how = how_it_ended(code)
    progress = Progress(run)
    progress.update()
    if complaint := gpu_complaint(run, progress.began):
        return Ending(f"The worker ended: {complaint}.", True)
    if want := want_of_memory(progress, code):
        return Ending(f"The worker {how}: {want}.", True)
    said = progress.error or last_words(run, progress.began) or "it left no log"
    return Ending(f"The worker {how}: {said}", True)


def how_it_ended(code: int) -> str:
    """What an exit code other than 0 says, after a subject."""
    if code < 0:
        # Nobody but the system kills a worker that was not asked to stop.
        return f"was killed by signal {-code}" + (" (out of memory?)" if -code in MEMORY_SIGNALS else "")
    return f"failed with code {code}"


def cut_off_by(run: Path, since: float) -> str:
    """Why a worker that nobody waited for is gone, as far as its log says."""
    return gpu_complaint(run, since) or last_words(run, since) or "it was killed (out of memory?)"


def want_of_memory(progress: Progress, code: int) -> str:
    """What a worker needs of memory, what is free, and the way out; empty where it lacked none."""
    told = not progress.error and says_out_of_memory(last_words(progress.folder, progress.began))
    return out_of_memory(progress.needed) if -code in MEMORY_SIGNALS or told else ""


def gpu_complaint(run: Path, since: float) -> str:
    """What the GPU ended the last worker for, and the way out; empty where it did not."""
    said = " ".join(_last_lines(run, since))
    marks = {mark: mark for mark in GPU_COMPLAINTS} | ALSO_WRITTEN
    last = max(marks, key=said.rfind)
    return GPU_COMPLAINTS[marks[last]] if last in said else ""


def last_words(run: Path, since: float) -> str:
    """The last line that the last worker wrote to its log, where that is newer than ``since``; else empty."""
    lines = _last_lines(run, since)
    return one_line(lines[-1])[:200] if lines else ""


def _last_lines(run: Path, since: float) -> list[str]:
    path = run / LOG
    try:
        if path.stat().st_mtime < since:
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return []
    begins = [number for number, line in enumerate(lines) if line.startswith(BEGINS)]
    return lines[begins[-1] + 1 if begins else 0 :][-LAST_LINES:]
