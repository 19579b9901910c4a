"""The example of use as a library does what it says."""

import json
import subprocess
import sys

import pytest

from examples import library
from tests.helpers import run_with_dataset
from unlearn_mlx.evaluation.keys import key_of
from unlearn_mlx.evaluation.probes import Probe, write_row
from unlearn_mlx.runs.files import write_rows


def test_it_works_off_a_run_and_asks_both(tmp_path, tiny_folder, capsys):
    # A random model writes no question that could be used: the first two stages' files are there.
    run = run_with_dataset(tmp_path / "run", tiny_folder, epochs=0.5, rank=2)
    write_rows(run.file("answers.jsonl"), [{"question_id": "q-0", "answer": "A baker.", "accepted": True}])
    probe = Probe("p-0", "topic", "open", "Hermione", "What is Hogwarts?", "A school.", ("school",))
    write_rows(run.file("probes.jsonl"), [write_row(probe)])
    library.forget(run)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["questions", "answers", "train", "evaluate"]
    assert "8, such as 'Who is Harry Potter?'" in lines[0]
    assert "1 of 1 accepted, such as 'A baker.'" in lines[1]
    assert run.has_adapter and str(run.file("adapter")) in lines[2]
    measured = json.loads(run.file("evaluation.json").read_text())
    key = key_of(measured["base"], "topic/open leak")
    assert f"{key} {measured['base'][key]:.0%} -> " in lines[3]
    said = library.ask(run, "Who is Harry Potter?")
    assert said.keys() == {"base", "adapter"} and said["base"]


@pytest.mark.slow
def test_as_a_script_it_forgets_harry_potter(tmp_path):
    done = subprocess.run(
        [sys.executable, library.__file__],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    begins = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert begins[:5] == ["questions", "answers", "train", "evaluate", "base"] and "adapter" in begins
    assert (tmp_path / "runs" / "library" / "report.html").exists()
