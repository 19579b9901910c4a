"""Every command where something is missing around it, and what it does when it is to end."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.faults.surroundings import BROKEN, COMMANDS, RUN, SLOW_COMMANDS, faults_in, prepare
from tests.helpers import command, complaint, unlearn
from unlearn_mlx.cli import entry
from unlearn_mlx.cli.main import main
from unlearn_mlx.pipeline import reset_from
from unlearn_mlx.runs.run import open_run


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("place")
    prepare(folder, tiny_folder)
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_no_command_ends_with_a_traceback(place, tiny_folder, name):
    faults = faults_in(BROKEN[name], COMMANDS, place, tiny_folder)
    assert not faults, "\n".join(faults)


def test_no_command_that_computes_ends_with_a_traceback(place, tiny_folder):
    computing = [words for words in SLOW_COMMANDS if words[0] in ("chat", "run", "export", "import", "serve")]
    faults = faults_in(next(iter(BROKEN.values())), computing, place, tiny_folder)
    assert not faults, "\n".join(faults)


def test_a_report_is_drawn_by_a_python_without_documentation_strings(place):
    done = unlearn("report", RUN, cwd=place, environment={"PYTHONOPTIMIZE": "2", "PYTHONPATH": os.getcwd()})
    assert (done.returncode, done.stdout) == (0, f"{RUN}/report.html\n"), done.stderr


def piped(folder, words, reader, given=""):
    """The exit code of a command whose output ``reader`` reads, and what it complains of."""
    script = f'"$@" 2>said | {reader}; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command(*words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        input=given.encode(),
        capture_output=True,
        timeout=120,
    )
    return int(done.stdout.split()[-1]), (folder / "said").read_text()


def test_a_chat_whose_reader_leaves_ends_quietly(place):
    code, said = piped(place, ["chat", RUN, "--max-tokens", 64], "head -c 1 >/dev/null", "Hello\n" * 3)
    assert code == 0, said
    assert "Traceback" not in said and "Exception" not in said


@pytest.mark.parametrize(("bound", "wanted"), [("leak<=1", 0), ("leak<=0", 1)])
def test_a_gate_is_judged_though_nobody_reads_the_table(place, bound, wanted):
    code, said = piped(place, ["evaluate", RUN, "--gate", bound], "true")
    assert code == wanted, said


def test_characters_that_the_terminal_lacks_are_written_otherwise(place):
    done = unlearn("compare", RUN, cwd=place, environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "|" in done.stdout and "[1]" in done.stdout
    assert done.stdout.isascii()
    entry.tolerate_encodings()
    assert json.loads('"\u00c9\U0001f642"'.encode("ascii", "otherwise")) == "\u00c9\U0001f642"


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_temperature_that_is_none_is_one_line(place, capsys, value):
    assert main(["chat", str(place / RUN), "--temperature", value]) == 2
    assert "--temperature" in complaint(capsys.readouterr().err)


def test_an_interrupt_in_the_first_moments_is_one_line(place):
    script = "import os, signal, sys\nfrom unlearn_mlx.cli import entry\n"
    script += "sys.modules['unlearn_mlx.cli.main'] = None\n"
    # The command's own modules are being imported when Ctrl-C comes.
    script += "sys.meta_path.insert(0, type('Slow', (), {'find_spec': staticmethod("
    script += "lambda *_: os.kill(os.getpid(), signal.SIGINT))}))\n"
    script += "del sys.modules['unlearn_mlx.cli.main']\nsys.exit(entry.run())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "unlearn: cancelled; the same command goes on where it stopped\n"


def test_a_terminal_that_is_closed_ends_the_worker_too(place):
    reset_from(open_run(place / RUN), "train")
    child = subprocess.Popen(command("train", place / RUN), stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        next(line for line in child.stderr if "running" in line)
        child.send_signal(signal.SIGHUP)
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert (child.returncode, said.count("unlearn: ")) == (130, 1), said
    with open_run(place / RUN).writing():  # nobody works on it any longer
        assert open_run(place / RUN).state_of("train") in ("cancelled", "running")
