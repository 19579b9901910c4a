"""Who does what a message says arrives: every command that a text of the program names is followed."""

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers import new_run, run_with_dataset, strong_adapter, write_tiny_model
from tests.runs_with_results import finished_run, ship
from tests.said_commands import commands_in, texts_with_commands
from unlearn_mlx.cli import runs as commands_on_runs
from unlearn_mlx.cli.main import _parser, main
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS
from unlearn_mlx.runs.run import Run, open_run
from unlearn_mlx.topics import Topic

STEPS = 4  # messages that are followed one after the other
HUB_MODEL = "someone/tiny"


@dataclass
class Place:
    """Where a user stands: an empty directory with a model, and runs made before."""

    folder: Path
    model: Path
    finished: Path
    hub: Any

    def untrained(self, **settings: Any) -> Run:
        """A run whose rows are there."""
        return run_with_dataset(self.folder / "run", self.model, **{"epochs": 1, "rank": 2, **settings})

    def whole(self) -> Run:
        """A run that is trained and evaluated."""
        return open_run(Path(shutil.copytree(self.finished, self.folder / "run")))

    def imported(self) -> Run:
        """A run of somebody's adapter."""
        shutil.copytree(self.finished / "adapter", self.folder / "theirs")
        said = ("import", "theirs", "--topic", "Mr X", "--model", str(self.model), "--out", "run")
        assert main(list(said)) == 0
        return open_run(Path("run"))


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return finished_run(path, tiny_folder, Topic("Mr X", neighbours=["Merlin"]), rank=2, probes=20).path


@pytest.fixture
def place(workplace, tiny_folder, finished, on_hub, monkeypatch):
    def work_here(path: Path, stages: Any) -> int:
        """What a worker does, without the seconds that a process of its own takes to start."""
        run_stages(open_run(path), stages)
        return 0

    monkeypatch.setattr(commands_on_runs, "follow", work_here)
    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", workplace / "adapters")
    monkeypatch.setattr("unlearn_mlx.runs.shipped.DATA", workplace / "data")
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    return Place(workplace, tiny_folder, finished, on_hub)


# -- what goes wrong: each leaves a place in which its command ends with a message --


def no_adapter(place):
    return ["export", place.untrained().path]


def training_not_over(place):
    run = place.whole()
    run.mark("train", "cancelled")
    return ["push", run.path, "me/x", "--dry-run"]


def too_early(place):
    return ["evaluate", place.untrained().path]


def not_evaluated(place):
    run = place.whole()
    run.file("evaluation.json").unlink()
    return ["show", run.path]


def another_adapters_evaluation(place):
    run = place.whole()
    strong_adapter(load_by_name(str(place.model)), seed=7).save(run.file("adapter"))
    return ["report", run.path]


def damaged_evaluation(place):
    run = place.whole()
    run.file("evaluation.json").write_text('{"base": {}}')
    return ["show", run.path]


def damaged_audit(place):
    run = place.whole()
    run.file("audit.json").write_text("{}")
    run.file("retain.jsonl").write_text("")
    return ["report", run.path]


def damaged_adapter(place):
    run = place.whole()
    run.file("adapter", WEIGHTS).write_bytes(b"half")
    return ["chat", run.path]


def adapter_of_nan(place):
    run = place.whole()
    path = run.file("adapter", WEIGHTS)
    weights = {name: array * float("nan") for name, array in mx.load(str(path)).items()}
    mx.save_safetensors(str(path), weights)
    return ["chat", run.path]


def adapter_of_other_shapes(place):
    run = place.whole()
    strong_adapter(load_by_name(str(place.model)), rank=9).save(run.file("adapter"))
    run.file("adapter", CONFIGURATION).write_bytes((place.finished / "adapter" / CONFIGURATION).read_bytes())
    return ["export", run.path]


def no_configuration(place):
    run = place.whole()
    run.file("adapter", CONFIGURATION).write_text("{")
    return ["export", run.path]


def adapter_that_cannot_be_measured(place):
    run = place.whole()
    path = run.file("adapter", CONFIGURATION)
    configuration = json.loads(path.read_text())
    configuration["lora_parameters"]["scale"] = 1e38
    path.write_text(json.dumps(configuration))
    return ["evaluate", run.path]


def imported_and_damaged(place):
    run = place.imported()
    run.file("adapter", WEIGHTS).unlink()
    return ["export", run.path]


def training_of_an_import(place):
    place.imported()
    return ["train", "run", "--again"], ["export", "run"]


def training_of_what_is_shipped(place):
    ship(open_run(place.finished), place.folder)
    return ["train", "adapters/tiny/x", "--again"], ["export", "runs/mr-x"]


def export_unmeasured(place):
    run = place.whole()
    run.file("evaluation.json").unlink()
    return ["export", run.path]


def next_after_training(place):
    return ["train", place.untrained().path]


def next_after_evaluation(place):
    run = place.whole()
    run.mark("evaluate", "cancelled")
    return ["evaluate", run.path]


def next_after_import(place):
    shutil.copytree(place.finished / "adapter", "theirs")
    return ["import", "theirs", "--topic", "Mr X", "--model", place.model]


def model_not_fetched(place):
    add_model(place)
    return ["models", "verify", HUB_MODEL]


def damaged_model(place):
    add_model(place)
    assert main(["models", "pull", HUB_MODEL]) == 0
    for blob in Path(place.folder, "hub-cache").rglob("blobs/*"):
        blob.write_bytes(b"x" + blob.read_bytes())
    return ["models", "verify", HUB_MODEL]


def model_not_there(place):
    return ["models", "remove", HUB_MODEL], ["models"]


def add_model(place):
    files = {path.name: path.read_bytes() for path in place.model.iterdir()}
    place.hub.add_model(HUB_MODEL, files)


# -- which text each of them ends with --

# What a scenario returns is a command, or two: what goes wrong, and what must go well in the end.
FOLLOWED: dict[str, list[Callable[[Place], Any]]] = {
    "{} {}: {command} first": [no_adapter, too_early, training_not_over, imported_and_damaged],
    "{} is not evaluated yet{}: run 'unlearn evaluate {}'": [not_evaluated, another_adapters_evaluation],
    "restore it, or run 'unlearn evaluate --again {}'": [damaged_evaluation],
    "restore it, or run 'unlearn audit --again {}'": [damaged_audit],
    "{} is missing or damaged: {command}": [damaged_adapter, no_configuration],
    "{} holds numbers that are not finite: {command}": [adapter_of_nan],
    "{}: {}; {command}": [adapter_of_other_shapes],
    "train with a lower rate, '{command}'": [adapter_that_cannot_be_measured],
    "{} was imported, and nothing is here to make its adapter from: {command}": [training_of_an_import],
    "{} comes with the project and stays as it is: '{command}' makes a run of it": [
        training_of_what_is_shipped
    ],
    "not measured: run '{command}' first, then delete {} and export again": [export_unmeasured],
    'In {}. Next: unlearn {} "{}"': [next_after_training],
    'unlearn chat "{}"': [next_after_evaluation],
    'Next: unlearn evaluate "{}", or unlearn chat "{}"': [next_after_import],
    "{} is not fetched yet: 'unlearn models pull {}'": [model_not_fetched],
    "{} is damaged ({}): 'unlearn models remove {}', then pull it again": [damaged_model],
    "the cache has no {}: 'unlearn models' lists what is there": [model_not_there],
}

# Texts whose commands start an app, take minutes, or need more than a random model: the parser takes them.
ACCEPTED = {
    ": `{command}` does it",
    "At work without the app: {}. 'unlearn tui' finds it again.",
    "Quit and let it go on; 'unlearn tui' finds it again",
    'No runs yet. Next: unlearn run "Harry Potter"',
    'Revision {}. Next: unlearn run "Harry Potter" --model {}',
    "The run is a program of its own: this page can be reloaded or closed, and the demo stopped. "
    "It lies in `{}/`, and `unlearn runs` lists it.",
    "download {}: 'unlearn models pull {}'",
    "half fetched: 'unlearn models pull {}' goes on",
    "make one with 'unlearn run TOPIC'",
    "the terminal app needs a terminal: use 'unlearn run' and 'unlearn chat'",
    "the topic is empty: give its name, as in 'unlearn run \"Harry Potter\"'",
    "{} has no forget rows: run '{command} --again'",
    "{}: '{}' is not done: run '{command}' first",
    "Take one by hand: 'unlearn run TOPIC --guardrail {}'",
    "would be freed: 'unlearn runs clean --now'",
    "which model? 'unlearn models {} NAME'; 'unlearn models' lists them",
    # Of mending, which test_mending.py goes through on a model that says sentences.
    "Mend it with 'unlearn mend {}'.",
    "Next: unlearn chat {}",
    "Next: unlearn mend {}",
    "Only a run keeps its marks: 'unlearn import FOLDER --topic TOPIC' makes one of an adapter.",
    "The old adapter is kept: 'unlearn mend {} --undo' brings it back.",
    "none of {} answers behind the guardrail passed the leak filter ({} has the reasons): mark an answer to "
    "another question in 'unlearn chat {}', and mend again",
    "{} is an adapter without a run: 'unlearn import {} --topic TOPIC' makes one",
    "{} was not mended yet: run 'unlearn mend {}'",
    "{}: in 'unlearn chat {}' say /leak after an answer that leaks",
}

# No messages: pieces that commands are put together from, and what tests below or elsewhere see to.
PIECES = {
    "'unlearn {}' failed",
    "run '{command}{}'",
    "unlearn run",
    "unlearn {} {}",
    "{command} --again --learning-rate {}",
    "{} is missing: '{command}' makes it again",
    "the {} is not finite at step {}{}: train it with a lower rate, '{command}'",  # in test_stale.py
    "{} was made with other weights of {}: '{command}' makes a new run",
    "unlearn chat {} --model {}",  # of a card
    "unlearn mend {} --learning-rate {}",  # in place of "train it with a lower rate", for a mend
    '"$(unlearn models pull {})"',
    "## Make it again\n\n{}\n\n{}    unlearn reproduce {}\n\n{}",  # in test_reproduce.py
    "{} Made with unlearn-mlx by\n\n    {command}",
}


def test_every_text_that_names_a_command_is_known_here():
    assert texts_with_commands() == FOLLOWED.keys() | ACCEPTED | PIECES


@pytest.mark.parametrize("text", sorted(ACCEPTED))
def test_a_command_that_is_named_is_one_that_there_is(text):
    filled = text.replace("models {} NAME", "models pull NAME").replace("{command}", "unlearn train x")
    for command in commands_in(filled.replace("{}", "x")):
        words = shlex.split(command)[1:]
        try:
            _parser(words).parse_args(words)
        except SystemExit:
            assert command in ("unlearn run", "unlearn chat"), "only a command's name may lack its topic"


@pytest.mark.parametrize(
    ("text", "scenario"),
    [(text, scenario) for text, scenarios in FOLLOWED.items() for scenario in scenarios],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_who_does_what_a_message_says_arrives(place, capsys, text, scenario):
    first = scenario(place)
    first, last = first if isinstance(first, tuple) else (first, first)
    code, message = said(first, capsys)
    assert re.search(".*".join(map(re.escape, re.split(r"{\w*}", text))), message), message
    for _ in range(STEPS):
        follow(message, place, capsys)
        if code == 0:  # the message was no complaint, and its command went well
            return
        code, message = said(last, capsys)
        if code == 0:
            return
    raise AssertionError(f"still not there: {message}")


def said(words, capsys):
    """How a command ends, and the last thing that it says."""
    sys.stdin.seek(0)
    capsys.readouterr()
    code = main([str(word) for word in words])
    lines = capsys.readouterr().err.strip().splitlines()
    return code, lines[-1] if lines else ""


def follow(message, place, capsys):
    """Do what a message says."""
    if "delete the directory" in message:
        shutil.rmtree(place.folder / "run")
    elif named := re.search(r"delete (\S+) and", message):
        shutil.rmtree(named[1])
    commands = commands_in(message)
    assert commands, message
    if "then pull it again" in message:
        commands.append(f"unlearn models pull {HUB_MODEL}")
    for command in commands:
        sys.stdin.seek(0)
        code = main(shlex.split(command)[1:])
        assert code == 0, f"{command}: {capsys.readouterr().err}"


def test_a_topic_file_that_was_deleted_is_made_again(place, capsys):
    run = place.whole()
    run.file("topic.toml").write_text("name = ")
    with pytest.raises(UserError, match="delete it to have it made again"):
        _ = run.topic
    run.file("topic.toml").unlink()
    with pytest.raises(UserError) as caught:
        _ = run.topic
    follow(str(caught.value), place, capsys)
    assert run.topic.name == "Mr X" and open_run(run.path).manifest.proposed


def test_a_run_that_was_made_with_other_weights_names_a_new_one(place, capsys):
    model = Path(shutil.copytree(place.model, "model"))
    run = run_with_dataset(Path("run"), model)
    shutil.rmtree(model)
    write_tiny_model(model, tied=False)
    code, message = said(["train", run.path], capsys)
    (command,) = commands_in(message)
    assert code == 2 and main([*shlex.split(command)[1:], "--dry-run"]) == 0
    assert "run-2" in capsys.readouterr().out


def test_a_model_that_was_half_fetched_and_is_whole_now_is_taken(place, capsys):
    model = Path(shutil.copytree(place.model, "model"))
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:5000])
    words = ["run", "Mr X", "--preset", "quick", "--out", "run", "--model", "./model"]
    code, message = said(words, capsys)
    assert code == 3 and "fetch the model again" in message
    (model / "model.safetensors").write_bytes(whole)
    _, message = said(words, capsys)
    assert "questions could be used" in message, "a random model gets as far as that"
    (model / "model.safetensors").write_bytes(whole[:5000])
    code, message = said(words, capsys)
    assert code == 2 and "other weights" in message and "--model" not in message


def test_a_run_whose_questions_are_not_there_is_gone_on_with_from_the_beginning(place, capsys):
    run = new_run(Path("run"), place.model, rank=3, learning_rate=2e-4)
    for words in (["export", run.path], ["train", run.path], ["answers", run.path]):
        code, message = said(words, capsys)
        (command,) = commands_in(message)
        assert code == 2 and main([*shlex.split(command)[1:], "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert (
            "rank             3" in shown and "into     run" in shown and "learning_rate    0.0002" in shown
        )
