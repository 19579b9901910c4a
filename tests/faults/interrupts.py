"""Ctrl-C at any moment of any command: it ends with one line and code 130, and the same command goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.surroundings import MODEL, RUN, prepare
from tests.helpers import write_tiny_model

COMMANDS: Sequence[Sequence[str]] = (
    ("questions", "Harry Potter", "--model", MODEL, "--preset", "quick", "--out", "new"),
    ("answers", RUN, "--again"),
    ("train", RUN, "--again"),
    ("evaluate", RUN, "--again"),
    ("audit", RUN),
    ("export", RUN, "--out", "exported"),
    ("export", RUN, "--format", "hf", "--out", "exported"),
    ("import", f"{RUN}/adapter", "--topic", "Harry Potter", "--model", MODEL, "--out", "imported"),
    ("push", RUN, "owner/name", "--dry-run"),
    ("chat", RUN, "--max-tokens", "8"),
    ("serve", RUN, "--port", "0"),
    ("report", RUN),
    ("compare", RUN, "--html", "page.html"),
    ("show", RUN),
    ("run", "Harry Potter", "--model", MODEL, "--dry-run"),
    ("doctor",),
    ("models",),
)
FIRST = 0.4  # seconds; before it nothing of the command has begun
LONGEST = 60.0  # seconds, for those that end by themselves
OTHERS = 8.0  # of those that wait for somebody
ENDS = (0, 1, 2, 3, 130)  # a command may have ended, or refused, before


def interrupted(words: Sequence[str], place: Path, moment: float) -> tuple[int, str, float]:
    """The code and the words of a command that got Ctrl-C after so many seconds, and how long it took."""
    child = subprocess.Popen(
        [sys.executable, "-m", "unlearn_mlx.cli", *words],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        # Where this runs in the background of a script, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    began = time.monotonic()
    try:
        child.wait(moment)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
    try:
        said = child.communicate(b"", timeout=LONGEST)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        child.kill()
        return 124, "it did not end", LONGEST
    return child.returncode, said, time.monotonic() - began


def faults_of(words: Sequence[str], fresh: Path, place: Path, moments: Sequence[float]) -> list[str]:
    """What goes wrong where the command is stopped at those shares of its time, each on a fresh copy."""
    faults: list[str] = []
    waits = words[0] in ("chat", "serve")
    # A random model may be refused for what it writes: then it is so again.
    end, _, seconds = (0, "", OTHERS) if waits else _on_copy(words, fresh, place, LONGEST)
    for share in moments:
        moment = FIRST + share * max(0.1, seconds - FIRST)
        code, said, _ = _on_copy(words, fresh, place, moment)
        if code not in ENDS or "Traceback" in said or "Exception ignored" in said:
            faults.append(f"{' '.join(words)}, stopped after {moment:.2f} s: code {code}, {said[-600:]}")
        elif not waits and code == 130:
            code, said, _ = interrupted(words, place, LONGEST)
            if code != end:
                faults.append(f"{' '.join(words)}, again after {moment:.2f} s: code {code}, {said[-600:]}")
    return faults


def _on_copy(words: Sequence[str], fresh: Path, place: Path, moment: float) -> tuple[int, str, float]:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(fresh, place)
    return interrupted(words, place, moment)


def main(each: int = 3, seed: int = 0) -> int:
    """Stop each command at so many moments, and say what was found."""
    source, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="unlearn-interrupts-") as folder:
        fresh, model_folder = Path(folder) / "fresh", write_tiny_model(Path(folder) / "model")
        prepare(fresh, model_folder)
        for words in COMMANDS:
            told = [word.replace(MODEL, str(model_folder)) for word in words]
            moments = [(number + source.random()) / each for number in range(each)]
            faults = faults_of(told, fresh, Path(folder) / "place", moments)
            print(f"{' '.join(words)}: {each} interrupts, {len(faults)} faults", flush=True)
            print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
            failed += len(faults)
    return int(failed > 0)
