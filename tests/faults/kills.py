"""A run that is killed at any moment goes on with the same command, and ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.small_runs import SAVE_EVERY, results_of, small_run
from tests.faults.watching import Watcher
from tests.helpers import write_tiny_model
from unlearn_mlx.runs.files import BUILDING
from unlearn_mlx.runs.run import STAGES, open_run
from unlearn_mlx.synthetic_data.journal import COHORT

MOST_KILLS = 12  # of one run; most end before
CACHE = "UNLEARN_CACHE"


@dataclass
class Outcome:
    """What a run came to. ``faults`` is empty where it kept every promise.

    ``steps_again`` and ``answers_again`` are what was computed a second time after one kill, at most.
    """

    results: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0  # of work, without what a process takes to begin
    moments: int = 0  # steps, answers, writes and renames of one that was not killed
    kills: list[str] = field(default_factory=list)  # what was under way at each
    reads: int = 0
    steps_again: int = 0
    answers_again: int = 0
    faults: list[str] = field(default_factory=list)


def work(folder: Path, model_folder: Path, worker: bool, kills: Sequence[float | int] = ()) -> Outcome:
    """Make a run in ``folder``, killed again and again, then left to end.

    ``kills`` are when: after so many seconds, or at moment number so and so, where it is an int.
    """
    run = small_run(folder / "run", model_folder)
    outcome = Outcome()
    with Watcher(run.path) as watcher:
        for when in (*kills, None):
            child = _start(folder, worker, when if isinstance(when, int) else 0)
            began = time.monotonic()
            try:
                child.wait(when if isinstance(when, float) else None)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if child.returncode == -signal.SIGKILL:
                done = [stage for stage in STAGES if open_run(run.path).stage_is_done(stage)]
                outcome.kills.append((*STAGES, "the end")[len(done)])
                continue
            outcome.seconds += time.monotonic() - began
            if child.returncode:
                outcome.faults.append(f"code {child.returncode}: {(folder / 'log').read_text()[-800:]}")
            break
    outcome.reads, outcome.faults = watcher.reads, outcome.faults + watcher.faults
    outcome.results = results_of(run.path)
    noted = (folder / "work").read_text()
    outcome.steps_again, outcome.answers_again = _computed_again(noted)
    outcome.moments = int(noted.split()[-1])
    left = [*run.path.rglob(f"{BUILDING}*"), run.file("checkpoints"), run.file(".writer.json")]
    outcome.faults += [f"left behind: {path.name}" for path in left if path.exists()]
    return outcome


def _start(folder: Path, worker: bool, moment: int) -> "subprocess.Popen[bytes]":
    """A process that works on the run, and has begun."""
    words = [folder / "run", folder / "work", str(moment), *(["--worker"] if worker else [])]
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.small_runs", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, CACHE: str(folder / "cache")},
            start_new_session=True,
        )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    return child


def _computed_again(noted: str) -> tuple[int, int]:
    """The steps and answers that one process computed though another one had, at most."""
    before: set[str] = set()
    most = {"step": 0, "answer": 0}
    for process in noted.split("begun\n"):
        lines = process.splitlines()
        for kind in most:
            again = sum(line in before for line in lines if line.startswith(kind))
            most[kind] = max(most[kind], again)
        before.update(lines)
    return most["step"], most["answer"]


def faults_of(killed: Outcome, whole: Outcome, worker: bool) -> list[str]:
    """The promises that a killed run did not keep, held against one that was not killed."""
    faults = list(killed.faults)
    faults += [
        f"other bytes: {name}" for name in whole.results if killed.results.get(name) != whole.results[name]
    ]
    if killed.steps_again > SAVE_EVERY:
        faults.append(f"{killed.steps_again} steps were taken again")
    if killed.answers_again > COHORT * (1 + worker):
        faults.append(f"{killed.answers_again} answers were generated again")
    return faults


def kill(count: int, worker: bool, folder: Path, seed: int = 0, model: Path | None = None) -> Outcome:
    """Kill so often, over as many runs as that takes. Returns what was found in all of them."""
    source = random.Random(seed)
    model_folder = model or write_tiny_model(folder / "model")
    whole = work(folder / "whole", model_folder, worker)
    found = Outcome(faults=list(whole.faults), reads=whole.reads, seconds=whole.seconds)
    number = 0
    while len(found.kills) < count and not found.faults:
        place = folder / f"killed-{number}"
        number += 1
        # The machine was measured once; what the base answers is found out again.
        known = shutil.ignore_patterns("base-evaluations")
        shutil.copytree(folder / "whole" / "cache", place / "cache", ignore=known)
        # In turns after a time and at a moment: of time most goes into few places.
        left = min(count - len(found.kills), MOST_KILLS)
        kills = [
            source.randint(1, whole.moments) if kill % 2 else source.uniform(0, whole.seconds)
            for kill in range(left)
        ]
        killed = work(place, model_folder, worker, kills)
        found.faults += faults_of(killed, whole, worker)
        found.kills += killed.kills
        found.reads += killed.reads
        found.steps_again = max(found.steps_again, killed.steps_again)
        found.answers_again = max(found.answers_again, killed.answers_again)
        if not found.faults:
            shutil.rmtree(place)
    return found


def main(count: int = 200, seed: int = 0) -> int:
    """Kill half as often with a worker process and half without, and say what was found."""
    failed = False
    for worker in (False, True):
        with tempfile.TemporaryDirectory(prefix="unlearn-kills-") as folder:
            found = kill(count // 2, worker, Path(folder), seed)
        where = ", ".join(f"{found.kills.count(stage)} in {stage}" for stage in dict.fromkeys(found.kills))
        print(
            f"{len(found.kills)} kills {'with' if worker else 'without'} a worker process ({where}): "
            f"{len(found.faults)} faults; {found.reads} files read meanwhile; computed again after one kill: "
            f"at most {found.steps_again} steps and {found.answers_again} answers"
        )
        print("".join(f"  {fault}\n" for fault in found.faults), end="", flush=True)
        failed = failed or bool(found.faults)
    return int(failed)
