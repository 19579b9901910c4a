"""A run that several ranks share, one of which is killed at any moment, goes on with any number of them."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.small_runs import results_of, small_run
from tests.helpers import write_tiny_model
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.planner import usual_computation
from unlearn_mlx.runs.run import STAGES, open_run
from unlearn_mlx.session.hosts import Hosts, OtherRanks, started_ranks

CACHE = "UNLEARN_CACHE"
SECONDS_AT_MOST = 120
LOOKS_APART = 0.02  # seconds


def local_hosts(count: int) -> Hosts:
    """So many ranks on this machine."""
    return Hosts.model_validate({"hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * count})


@dataclass
class Ended:
    """How rank 0 ended, and what it said."""

    code: int
    said: str
    seconds: float


@contextmanager
def rank_0(folder: Path, ranks: int) -> Iterator[tuple["subprocess.Popen[bytes]", OtherRanks | None]]:
    """The process that works on the small run in ``folder`` as rank 0 of so many, and the others."""
    words = [sys.executable, "-m", "tests.faults.small_runs", folder / "run", folder / "work", "0"]

    def start() -> "subprocess.Popen[bytes]":
        with (folder / "log").open("wb") as log:
            environment = {**os.environ, CACHE: str(folder / "cache")}
            return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log, env=environment)

    if ranks == 1:
        yield start(), None
        return
    with started_ranks(local_hosts(ranks)) as others:
        yield start(), others


def work(
    folder: Path,
    ranks: int,
    killed: int | None = None,
    when: float | str = 0.0,
) -> Ended:
    """Work on the run in ``folder`` with so many ranks, of which ``killed`` is killed.

    ``when`` is after so many seconds, or as soon as that stage has begun.
    """
    began = time.monotonic()
    with rank_0(folder, ranks) as (process, others):
        victims = [process, *(others.processes if others else [])]
        if killed is not None:
            run = open_run(folder / "run")
            while process.poll() is None and not (
                any(event.stage == when for event in run.events())
                if isinstance(when, str)
                else time.monotonic() - began > when
            ):
                time.sleep(LOOKS_APART)
            victims[killed].send_signal(signal.SIGKILL)
        code = process.wait(SECONDS_AT_MOST)
        seconds = time.monotonic() - began
    return Ended(code, (folder / "log").read_text(), seconds)


def faults_of(found: dict[str, bytes], whole: dict[str, bytes]) -> list[str]:
    """What is not as in a run that was not killed, whoever computed it."""
    return [f"other bytes: {name}" for name in whole if found.get(name) != whole[name]]


def made(folder: Path, model_folder: Path) -> Path:
    """A folder with a small run that has not begun. Its steps have a part for each of four ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    run = small_run(folder / "run", model_folder)
    run.manifest.computation = usual_computation(current_device()).model_copy(update={"part_rows": 1})
    run.save_manifest()
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every stage of the run is done."""
    run = open_run(folder / "run")
    return all(run.stage_is_done(stage) for stage in STAGES)


def kill(
    folder: Path,
    model_folder: Path,
    moments: Sequence[tuple[int, int, float | str]],
    whole: Path,
    last: int = 1,
) -> list[str]:
    """Kill one rank after the other in one run, then let ``last`` ranks end it. Returns what went wrong.

    Each moment is how many ranks there are, which is killed, and when.
    """
    place, faults = made(folder, model_folder), []
    for ranks, killed, when in moments:
        ended = work(place, ranks, killed, when)
        lines = [line for line in ended.said.splitlines() if line.startswith("unlearn: ")]
        if killed and ended.code and (ended.code != 3 or len(lines) != 1 or "Traceback" in ended.said):
            faults.append(f"rank {killed} of {ranks}, {when}: {ended.code}, {ended.said[-300:]}")
    ended = work(place, last)
    if ended.code or not is_whole(place):
        return [*faults, f"it does not go on: {ended.said[-500:]}"]
    return faults + faults_of(results_of(place / "run"), results_of(whole / "run"))


def main(count: int = 20, seed: int = 0) -> int:
    """Kill so often, four times a run, and say what was found."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="unlearn-ranks-") as name:
        folder = Path(name)
        model_folder = write_tiny_model(folder / "model")
        whole = made(folder / "whole", model_folder)
        seconds = work(whole, 2).seconds
        faults = [] if is_whole(whole) else ["the run that was not killed is not whole"]
        kills = [(source.choice((2, 2, 4)), source.random()) for _ in range(count)]
        for first in range(0, count, 4):
            moments: list[tuple[int, int, float | str]] = [
                (ranks, source.randrange(ranks), share * seconds) for ranks, share in kills[first : first + 4]
            ]
            faults += kill(folder / f"killed-{first}", model_folder, moments, whole)
    print(f"{count} kills of ranks: {len(faults)} faults")
    print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
    return int(bool(faults))
