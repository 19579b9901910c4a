"""What killed processes leave behind goes at the next start, and what is under way stays."""

import os
import subprocess
import sys

import pytest

from tests.helpers import run_with_dataset
from unlearn_mlx.cli.main import main
from unlearn_mlx.runs.building import building, leftovers_in
from unlearn_mlx.runs.files import BUILDING, write_atomically
from unlearn_mlx.runs.run import Run


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def left_in(run: Run, gone: int) -> list:
    """A half-written file, one of a living process, checkpoints, and what is beside the run."""
    folder = run.file("export", f"{BUILDING}{gone}-hf-abc")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    run.file(f"{BUILDING}{gone}-report.html-abc").write_bytes(b"half")
    run.file(f"{BUILDING}{os.getpid()}-report.html-abc").write_bytes(b"under way")
    run.file("checkpoints").mkdir()
    run.file("checkpoints", "step-20.safetensors").write_bytes(b"x" * 2000)
    return [folder, run.file(f"{BUILDING}{gone}-report.html-abc")]


def test_the_next_start_removes_what_a_killed_process_left(workplace, tiny_folder, gone):
    run = run_with_dataset(workplace / "runs" / "owls", tiny_folder)
    dead = left_in(run, gone)
    with run.writing():
        assert not [path for path in dead if path.exists()]
        assert run.file(f"{BUILDING}{os.getpid()}-report.html-abc").exists()
        assert run.file("checkpoints").exists(), "training is not done"
        run.mark("train", "done")
    with run.writing():
        assert not run.file("checkpoints").exists()


def test_runs_clean_says_what_it_would_free_and_frees_it_when_told(workplace, tiny_folder, gone, capsys):
    run = run_with_dataset(workplace / "runs" / "owls", tiny_folder)
    dead = left_in(run, gone)
    beside = workplace / "runs" / f"{BUILDING}{gone}-import-abc"
    beside.mkdir()
    capsys.readouterr()
    assert main(["runs", "clean"]) == 0
    shown = capsys.readouterr()
    assert all(path.name in shown.out for path in (*dead, beside)) and "1,000" in shown.out
    assert "'unlearn runs clean --now'" in shown.err and dead[0].exists()
    assert main(["runs", "clean", "--now"]) == 0
    assert not [path for path in (*dead, beside) if path.exists()]
    assert run.file("checkpoints").exists() and run.file("manifest.json").exists()
    assert main(["runs", "clean"]) == 0
    assert "Nothing is left over" in capsys.readouterr().err


def test_a_folder_is_built_beside_its_place_and_follows_a_link(tmp_path, gone):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / f"{BUILDING}{gone}-real-x").mkdir()
    with building(tmp_path / "link") as made:
        assert leftovers_in(tmp_path) == [] and made.parent == tmp_path
        write_atomically(made / "file", "whole")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["file"]
    with pytest.raises(RuntimeError), building(tmp_path / "other"):
        raise RuntimeError("as any program may")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
