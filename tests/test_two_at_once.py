"""Several processes at one thing: one does it, the others wait or say who does."""

import os
import re
import subprocess
import sys

from tests.helpers import complaint, files_of, run_with_dataset, unlearn
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.runs.writing import WRITER

WRITE = """
import sys
from pathlib import Path
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import open_run
sys.stdin.readline()
try:
    with open_run(Path(sys.argv[1])).writing():
        print("writes", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""
CONVERT = """
import sys
from pathlib import Path
from unlearn_mlx.models import embedded
def slowly(source, folder):
    print("converts", flush=True)
    sys.stdin.readline()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    files = {name: embedded.sha256_of(folder / name) for name in ("config.json", "model.safetensors")}
    stamp = {"format": embedded.FORMAT, "source_sha256": embedded.GGUF_SHA256, "files": files}
    embedded.write_json(folder / "converted.json", stamp)
embedded._convert = slowly
print(embedded.embedded_folder(Path(sys.argv[1])), flush=True)
"""


def started(script, path):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(child):
    """All that a process says once it may go on."""
    out, _ = child.communicate("\n\n", timeout=60)
    return out.splitlines()


def test_of_eight_processes_one_writes_and_seven_say_who(tmp_path, tiny_folder):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    before = files_of(run.path)
    children = [started(WRITE, run.path) for _ in range(8)]
    first = children[0]
    first.stdin.write("\n")
    first.stdin.flush()
    assert first.stdout.readline() == "writes\n"
    for other in children[1:]:
        (line,) = said(other)
        assert re.search(rf"works on .*, number {first.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d", line)
    first.communicate("\n", timeout=60)
    assert {name: data for name, data in files_of(run.path).items() if name != ".lock"} == before


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, tiny_folder):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    child = started(WRITE, run.path)
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "writes\n"
    child.kill()
    child.communicate()
    assert (run.path / WRITER).exists()
    with open_run(run.path).writing():
        assert str(os.getpid()) in (run.path / WRITER).read_text()
    assert not (run.path / WRITER).exists()


def test_a_refused_command_leaves_nothing_in_the_run(tmp_path, tiny_folder):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    with run.writing():
        before = files_of(run.path)
        done = unlearn("train", run.path)
        assert files_of(run.path) == before
    assert done.returncode == 2
    assert f"number {os.getpid()} on " in complaint(done.stderr)


def test_two_first_uses_of_the_embedded_model_convert_it_once(tmp_path):
    children = [started(CONVERT, tmp_path) for _ in range(2)]
    for child in children:  # whichever comes first waits for nobody
        child.stdin.write("\n")
        child.stdin.flush()
    lines = [line for child in children for line in said(child)]
    assert lines.count("converts") == 1
    assert lines.count(str(tmp_path / "smollm2-135m-instruct")) == 2
    assert not list(tmp_path.glob(".building-*"))
