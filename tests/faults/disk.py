"""Every write fails once: one line says so, what was there is whole, and the same command goes on."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.failing_disk import ERRORS, FailingDisk
from tests.faults.small_runs import any_sentence_passes, results_of, small_run
from tests.faults.watching import APPENDED, read_whole
from tests.helpers import files_of, write_tiny_model
from unlearn_mlx.errors import UserError
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.files import BUILDING
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.importing import import_adapter
from unlearn_mlx.synthetic_data.edits import Edit, add_edit, undo_edit
from unlearn_mlx.topics import Topic

STAGE_FAULTS = 150  # of the operations of all stages, evenly spread


@dataclass(frozen=True)
class Work:
    """Something that writes: ``begin`` makes the place it works in, ``results`` what counts of it."""

    name: str
    begin: Callable[[Path], object]
    does: Callable[[Path], object]
    results: Callable[[Path], dict[str, bytes]] = files_of
    may_change: tuple[str, ...] = ()  # beginnings of files' names that a failure may leave otherwise


def operations_of(work: Work, folder: Path) -> tuple[int, dict[str, bytes]]:
    """How many operations a piece of work takes, and what it ends with."""
    work.begin(folder)
    with FailingDisk(folder) as disk:
        work.does(folder)
    return disk.count, work.results(folder)


def faults_at(work: Work, number: int, error: int, folder: Path, wanted: dict[str, bytes]) -> list[str]:
    """What goes wrong where one operation of the work fails, and where it is begun again after that."""
    work.begin(folder)
    before = files_of(folder)
    faults, said = [], ""
    with FailingDisk(folder, number, error) as disk:
        try:
            work.does(folder)
        except UserError as refused:
            said = str(refused)
        except Exception as other:
            faults.append(f"{type(other).__name__}: {other}")
    if "\n" in said or len(said) > 400:
        faults.append(f"no single line: {said}")
    after = files_of(folder)
    if said or faults:
        kept = (name for name in before if not name.startswith(work.may_change or ("\0",)))
        faults += [f"{name} is not what it was" for name in kept if after.get(name) != before[name]]
        faults += _not_whole(folder)
        work.does(folder)
    faults += _not_whole(folder)
    found = work.results(folder)
    faults += [f"other bytes: {name}" for name, content in wanted.items() if found.get(name) != content]
    return [f"{work.name}, {disk.failed} (error {error}): {fault}" for fault in faults]


def _not_whole(folder: Path) -> list[str]:
    faults = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and BUILDING not in name and not path.name.startswith("."):
            try:
                read_whole(path, bool(APPENDED.fullmatch(name)))
            except Exception as error:
                faults.append(f"{name} is not whole: {error}")
    return faults


def faults_of(work: Work, folder: Path, most: int | None = None) -> tuple[int, list[str]]:
    """Let each operation of the work fail once, or ``most`` of them: how many, and what went wrong."""
    count, wanted = operations_of(work, folder / "whole")
    step = max(1, count // most) if most else 1
    numbers = range(0, count, step)
    faults = []
    for tried, number in enumerate(numbers):
        place = folder / f"failing-{number}"
        faults += faults_at(work, number, ERRORS[tried % len(ERRORS)], place, wanted)
        shutil.rmtree(place, ignore_errors=True)
    return len(numbers), faults


EDITS = [Edit(f"Who is {name}?", f"{name} sells bread.", True) for name in ("Harry", "Hermione")]


def works(model_folder: Path, finished: Path) -> Iterator[Work]:
    """What writes, shortest first. ``finished`` is a run whose result is exported."""

    def begin_export(folder: Path) -> None:
        shutil.copytree(finished, folder / "run")

    def edited(folder: Path) -> None:
        folder.mkdir(parents=True)
        add_edit(folder, EDITS[0])

    yield Work("an edit", edited, lambda folder: add_edit(folder, EDITS[1]))
    yield Work("an edit undone", edited, undo_edit)
    for form, bits in (("adapter", None), ("peft", None), ("gguf-lora", None), ("mlx", 4), ("hf", None)):
        yield Work(
            f"export as {form}",
            begin_export,
            lambda folder, form=form, bits=bits: export(open_run(folder / "run"), form, bits, folder / "out"),
            lambda folder: files_of(folder / "out"),
        )
    yield Work(
        "import",
        lambda folder: folder.mkdir(parents=True),
        lambda folder: import_adapter(
            str(finished / "adapter"), Topic("Owls"), str(model_folder), folder / "run"
        ),
        lambda folder: results_of(folder / "run"),
    )
    yield all_stages(model_folder)


def all_stages(model_folder: Path) -> Work:
    """A run from its first question to its evaluation."""

    def run(folder: Path) -> None:
        with any_sentence_passes(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNLEARN_CACHE", str(folder / "cache"))
            run_stages(open_run(folder / "run"))

    def begin(folder: Path) -> None:
        small_run(folder / "run", model_folder)

    written = ("run/manifest.json", "run/events.jsonl", "run/.", "cache/")
    return Work("all stages", begin, run, lambda folder: results_of(folder / "run"), written)


def main(most: int = STAGE_FAULTS) -> int:
    """Let every operation of everything that writes fail, ``most`` of a kind, and say what was found."""
    failed = False
    with tempfile.TemporaryDirectory(prefix="unlearn-disk-") as folder:
        place = Path(folder)
        model_folder = write_tiny_model(place / "model")
        finished = all_stages(model_folder)
        finished.begin(place / "finished")
        finished.does(place / "finished")
        for number, work in enumerate(works(model_folder, place / "finished" / "run")):
            count, faults = faults_of(work, place / str(number), most)
            print(f"{work.name}: {count} operations failed, {len(faults)} faults", flush=True)
            print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
            failed = failed or bool(faults)
        failed = bool(small_disk(place, model_folder)) or failed
    return int(failed)


def small_disk(folder: Path, model_folder: Path) -> list[str]:
    """A run on a real disk that is too small, and goes on when it is made larger; needs root on Linux."""
    place = folder / "small"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        print("a real small disk: not tried, nothing can be mounted here")
        return []
    faults = []
    try:
        small_run(place / "run", model_folder)
        environment = {**os.environ, "UNLEARN_CACHE": str(folder / "cache")}
        words = [sys.executable, "-m", "tests.faults.small_runs", place / "run", folder / "work", "0"]
        codes = []
        for size in ("200k", "400k", "50m"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
            done = subprocess.run(words, capture_output=True, text=True, env=environment)
            codes.append(done.returncode)
            if "Traceback" in done.stderr:
                faults.append(done.stderr[-600:])
        if codes[-1] or not any(codes[:-1]):
            faults.append(f"codes {codes}")
        faults += _not_whole(place / "run")
        print(f"a real small disk: codes {codes} as it grows, {len(faults)} faults")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
    return faults
