"""Each file of a run damaged: it is named in a line, made again, or was a person's to change."""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.faults.small_runs import any_sentence_passes, results_of, small_run
from tests.faults.watching import APPENDED, read_whole
from tests.helpers import stop_after, write_tiny_model
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.pipeline import reset_from, run_stages
from unlearn_mlx.runs.run import Run, open_run

# The stage that reads a file, by how its name begins.
READ_BY = {
    "manifest.json": "train",
    "topic.toml": "answers",
    "questions.jsonl": "answers",
    "retain_questions.jsonl": "answers",
    "journal/": "answers",
    "dataset/": "train",
    "checkpoints/": "train",
    "probes.jsonl": "evaluate",
    "adapter/": "evaluate",
}
# What a person may edit counts as edited where it can be read.
EDITABLE = (
    "manifest.json",
    "topic.toml",
    "questions.jsonl",
    "retain_questions.jsonl",
    "dataset/",
    "probes.jsonl",
)


def damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What may become of a file."""
    middle = len(data) // 2
    yield "emptied", b""
    yield "truncated", data[:middle]
    yield "a bit flipped", data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    yield "zeros in the middle", data[:middle] + bytes(min(64, len(data) - middle)) + data[middle + 64 :]
    yield "of something else", b'{"format": 99, "id": "x"}\n'


def finished(folder: Path, model_folder: Path) -> Run:
    """A run with every file that it ever has: one that was stopped in training, and then ended."""
    run = small_run(folder, model_folder)
    with any_sentence_passes():
        run_stages(run, ["questions", "answers"])
        with pytest.raises(Cancelled):
            run_stages(run, ["train"], stop_after(4))
        shutil.copytree(run.file("checkpoints"), folder.with_name("checkpoints"))
        run_stages(open_run(folder))
    return open_run(folder)


def outcome_of(run: Run, stage: str, whole: dict[str, bytes], name: str) -> str:
    """What is wrong with how a run goes on from a stage though a file was damaged; empty if nothing is."""
    try:
        is_read = True
        read_whole(run.file(name), bool(APPENDED.fullmatch(name)))
    except Exception:
        is_read = False
    try:
        with any_sentence_passes():
            run_stages(open_run(run.path))
    except UserError as error:
        said = str(error)
        is_named = Path(name).name in said or stage in said or str(run.path) in said
        return "" if is_named and "\n" not in said else f"said: {said}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    now = results_of(run.path)
    others = [other for other in whole if now.get(other) != whole[other]]
    told = "is not the one that training left" in run.file("events.jsonl").read_text()
    if others and not told and not (is_read and name.startswith(EDITABLE)):
        return f"used silently: {', '.join(others)} came out otherwise"
    return ""


def faults_of(
    run: Run, place: Path, names: Collection[str] = (), kinds: Collection[str] = ()
) -> tuple[int, list[str]]:
    """Damage the files that a stage reads, or those named: how often, and what went wrong."""
    whole, count, faults = results_of(run.path), 0, []
    checkpoints = run.path.with_name("checkpoints")
    files = [str(path.relative_to(run.path)) for path in sorted(run.path.rglob("*")) if path.is_file()]
    files += [f"checkpoints/{path.name}" for path in sorted(checkpoints.iterdir())]
    for name in files:
        stage = next((stage for start, stage in READ_BY.items() if name.startswith(start)), None)
        if stage is None or (names and name not in names):
            continue
        source = checkpoints / Path(name).name if name.startswith("checkpoints/") else run.file(name)
        for what, data in damages(source.read_bytes()):
            if kinds and what not in kinds:
                continue
            shutil.copytree(run.path, place)
            damaged = open_run(place)
            with damaged.writing():
                reset_from(damaged, stage)
            if name.startswith("checkpoints/"):
                shutil.copytree(checkpoints, place / "checkpoints")
            damaged.file(name).write_bytes(data)
            count += 1
            if fault := outcome_of(damaged, stage, whole, name):
                faults.append(f"{name}, {what}: {fault}"[:400])
            shutil.rmtree(place)
    return count, faults


def main() -> int:
    """Damage every file of a run in every way, and say what was found."""
    with (
        tempfile.TemporaryDirectory(prefix="unlearn-damage-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("UNLEARN_CACHE", str(Path(folder) / "cache"))
        model_folder = write_tiny_model(Path(folder) / "model")
        run = finished(Path(folder) / "runs" / "run", model_folder)
        count, faults = faults_of(run, Path(folder) / "damaged")
    print(f"{count} damages, {len(faults)} faults")
    print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
    return int(bool(faults))
