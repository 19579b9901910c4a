"""Nothing stale: one adapter's results are never shown as another's, nor is half an adapter given away."""

import io
import json
import shlex
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from mlx_lm.tuner.lora import LoRALinear
from rich.console import Console

from tests.helpers import at_steps, complaint, run_with_dataset, strong_adapter
from tests.runs_with_results import finished_run
from tests.said_commands import commands_in
from unlearn_mlx.cli import runs as commands_on_runs
from unlearn_mlx.cli.main import main
from unlearn_mlx.cli.rendering import SAMPLES_IN_LOG, EventView
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import evaluation_of, read_audit, read_evaluation
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.pipeline import reset_from, run_stages
from unlearn_mlx.reporting.report import write_report
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS, adapter_sha256
from unlearn_mlx.runs.files import BUILDING
from unlearn_mlx.runs.run import Work, open_run
from unlearn_mlx.session.catalog import run_entry, shipped_entries
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.sft.trainer import train
from unlearn_mlx.sharing.importing import import_adapter
from unlearn_mlx.sharing.measure import measure_leak
from unlearn_mlx.sharing.model_card import model_card
from unlearn_mlx.topics import Topic

GIVING_AWAY = (("export",), ("push", "me/x", "--dry-run"), ("serve", "--port", "0"), ("chat",))
SHOWING = (("show",), ("report",), ("compare",), ("judge", "--json"), ("push", "me/x", "--dry-run"))
TRAINING = {"epochs": 1, "rank": 2, "validations": 1, "probes": 20}


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A run that is trained, evaluated and, as far as its file goes, audited."""
    run = finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder, Topic("Mr X"), **TRAINING)
    row = {"name": "adapter", "group": "plain", "leak": 0.5}
    audited = {
        "key": "",
        "adapter_sha256": adapter_sha256(run.file("adapter")),
        "rows": [row],
        "text": "Back.",
    }
    run.file("audit.json").write_text(json.dumps(audited))
    write_report(run)
    return run


def work_here(path, stages):
    """What a worker does, without the seconds that a process of its own takes to start."""
    run_stages(open_run(path), stages)
    return 0


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.setattr(commands_on_runs, "follow", work_here)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/quit\n"))
    return open_run(shutil.copytree(made.path, tmp_path / "run"))


def swap_adapter(run):
    """Another adapter in the place of the one that was evaluated."""
    strong_adapter(load_by_name(run.model_name), seed=9).save(run.file("adapter"))


def refusal(run, words, capsys):
    """The one line that a command about the run ends with."""
    capsys.readouterr()
    name, *rest = words
    assert main([name, str(run.path), *rest]) == 2, words
    return complaint(capsys.readouterr().err)


# Results


def test_results_bear_the_hash_of_their_adapter(run):
    known = adapter_sha256(run.file("adapter"))
    assert len(known) == 64
    assert read_evaluation(run.path).adapter_sha256 == known
    entry = run_entry(run.path)
    assert entry.evaluation() and entry.audit() and entry.after is not None


@pytest.mark.parametrize("words", SHOWING, ids=lambda words: words[0])
def test_another_adapters_evaluation_is_shown_by_no_command(run, capsys, words):
    swap_adapter(run)
    assert "of another adapter" in refusal(run, words, capsys)


def test_a_scale_that_was_edited_makes_another_adapter(run):
    path = run.file("adapter", CONFIGURATION)
    configuration = json.loads(path.read_text())
    configuration["lora_parameters"]["scale"] = 0.5
    path.write_text(json.dumps(configuration))
    assert evaluation_of(run.path) is None


def test_another_adapters_results_are_in_no_face_card_or_export(run):
    swap_adapter(run)
    entry = run_entry(run.path)
    assert (entry.evaluation(), entry.audit(), entry.before, entry.after) == (None, None, None, None)
    assert entry.scored_probes() == []
    assert read_audit(run.path) is None
    assert "It was not evaluated." in model_card(run, "adapter")
    assert measure_leak(load_by_name(run.model_name), run) is None


def test_an_evaluation_of_another_adapter_is_made_again_without_being_asked_twice(run, capsys):
    swap_adapter(run)
    assert main(["evaluate", str(run.path)]) == 0
    assert read_evaluation(run.path).adapter_sha256 == adapter_sha256(run.file("adapter"))


def test_results_without_a_hash_belong_to_what_is_there(run):
    for name in ("evaluation.json", "audit.json"):
        content = json.loads(run.file(name).read_text())
        del content["adapter_sha256"]
        run.file(name).write_text(json.dumps(content))
    swap_adapter(run)
    assert evaluation_of(run.path) and read_audit(run.path)
    for entry in shipped_entries():
        assert entry.evaluation() and entry.audit() and entry.after is not None


def test_a_training_that_replaces_the_adapter_takes_its_results_away(run):
    reset_from(run, "train")
    assert evaluation_of(run.path), "the adapter is still there, and so is what was measured of it"
    before = adapter_sha256(run.file("adapter"))
    run_stages(run, ["train"])
    assert adapter_sha256(run.file("adapter")) != before
    assert not any(run.file(name).exists() for name in ("evaluation.json", "audit.json", "report.html"))


# Adapters of an unfinished training


@pytest.mark.parametrize("state", ["running", "cancelled", "failed"])
def test_half_an_adapter_is_not_given_away(run, capsys, state):
    run.mark("train", state)
    for words in GIVING_AWAY:
        line = refusal(run, words, capsys)
        assert "not trained to the end" in line and f"unlearn train {run.path}" in line
    assert run_entry(run.path).adapter is None


def test_training_again_is_training(run, capsys):
    run_stages(run, ["train"])  # it is done, and nothing happens
    assert main(["train", str(run.path), "--again"]) == 0
    first = run.file("adapter", WEIGHTS).read_bytes()
    run.file("adapter", WEIGHTS).write_bytes(b"half")
    assert main(["train", str(run.path), "--again"]) == 0
    assert run.file("adapter", WEIGHTS).read_bytes() == first
    assert main(["train", str(run.path), "--again", "--learning-rate", "0.01"]) == 0
    assert run.file("adapter", WEIGHTS).read_bytes() != first
    assert open_run(run.path).settings.learning_rate == 0.01


def test_another_rate_makes_another_training_and_is_asked_for(run, capsys):
    assert "--again" in refusal(run, ("train", "--learning-rate", "0.01"), capsys)
    assert "--learning-rate 7" in refusal(run, ("train", "--again", "--learning-rate", "7"), capsys)


def test_a_best_adapter_that_was_replaced_is_not_gone_on_from(run):
    reset_from(run, "train")
    run_stages(run, ["train"])
    best = run.file("adapter", WEIGHTS).read_bytes()
    swap_adapter(run)
    run.mark("train", "cancelled")
    run_stages(open_run(run.path), ["train"])
    assert run.file("adapter", WEIGHTS).read_bytes() == best


# A training that diverges


def spoil_after(steps, model):
    """Let the weights overflow before the step after ``steps``, as too high a rate does."""
    left = steps

    def is_cancelled():
        nonlocal left
        left -= 1
        if left < 0:
            for _, module in model.model.named_modules():
                if isinstance(module, LoRALinear):
                    module.lora_b = module.lora_b + float("inf")
        return False

    return is_cancelled


@pytest.mark.parametrize("steps", [21, 24])  # seen in the loss, or in what is to be saved
def test_a_training_that_diverges_ends_with_one_line_and_goes_on_with_a_smaller_rate(
    tiny_model, tiny_folder, tmp_path, monkeypatch, steps
):
    run = run_with_dataset(tmp_path / "run", tiny_folder, epochs=8, rank=2, batch_size=8)
    with pytest.raises(UserError, match="not finite") as caught:
        train(tiny_model, Work(run, run.settings, at_steps(spoil_after(steps, tiny_model))))
    assert "the last good checkpoint is kept" in str(caught.value) and not run.has_adapter
    (kept,) = run.file("checkpoints").glob("*.safetensors")
    assert kept.name == "step-20.safetensors"
    assert all(mx.isfinite(array).all() for array in mx.load(str(kept)).values())
    (command,) = commands_in(str(caught.value))
    assert command.endswith("--again --learning-rate 0.0001")
    monkeypatch.setattr(commands_on_runs, "follow", work_here)
    assert main(["train", str(run.path)]) == 0, "it goes on from there"
    assert main(shlex.split(command)[1:]) == 0
    assert open_run(run.path).has_adapter and open_run(run.path).settings.learning_rate == 0.0001


# Imports


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_an_adapter_with_numbers_that_are_none_is_refused(tiny_model, tiny_folder, tmp_path, factor):
    strong_adapter(tiny_model).save(tmp_path / "theirs")
    path = tmp_path / "theirs" / WEIGHTS
    mx.save_safetensors(str(path), {name: array * factor for name, array in mx.load(str(path)).items()})
    with pytest.raises(UserError, match="not finite") as caught:
        import_adapter(str(path.parent), Topic("Mr X"), str(tiny_folder), tmp_path / "run")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_changes_nothing_is_refused(tiny_model, tiny_folder, tmp_path):
    Adapter(tiny_model.model, LoraShape(4, 4.0, 1000)).save(tmp_path / "theirs")
    with pytest.raises(UserError, match="changes nothing"):
        import_adapter(str(tmp_path / "theirs"), Topic("Mr X"), str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(f"{BUILDING}*"))


def test_an_adapter_that_cannot_be_opened_is_called_by_its_own_path(tiny_model, tiny_folder, tmp_path):
    strong_adapter(tiny_model).save(tmp_path / "theirs")
    path = tmp_path / "theirs" / CONFIGURATION
    path.write_text('{"lora_parameters": 7}')
    with pytest.raises(UserError) as caught:
        import_adapter(str(path.parent), Topic("Mr X"), str(tiny_folder), tmp_path / "run")
    assert str(path) in str(caught.value) and "train" not in str(caught.value)


def test_an_import_that_was_killed_can_be_started_again(tiny_model, tiny_folder, tmp_path):
    strong_adapter(tiny_model).save(tmp_path / "theirs")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"{BUILDING}{ended.pid}-run-1"
    left.mkdir()
    (left / "manifest.json").write_text("{")
    run = import_adapter(str(tmp_path / "theirs"), Topic("Mr X"), str(tiny_folder), tmp_path / "run")
    assert run.has_adapter and not list(tmp_path.glob(f"{BUILDING}*"))
    # As an earlier version left it: in its place, without a stage that is done.
    run.manifest.stages.clear()
    run.save_manifest()
    again = import_adapter(str(tmp_path / "theirs"), Topic("Mr X"), str(tiny_folder), tmp_path / "run")
    assert again.has_adapter


# The command


def test_a_run_that_has_its_model_takes_no_other(run, capsys):
    line = refusal(run, ("chat", "--model", "smollm2"), capsys)
    assert "--model smollm2" in line and "leave it out" in line
    assert main(["chat", str(run.path), "--model", run.model_name]) == 0


@pytest.mark.parametrize(("gate", "code"), [("leak<=1", 0), ("leak<0", 1)])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_gates_code_is_no_readers(made, gate, code, form):
    script = "import sys; from unlearn_mlx.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", script, "evaluate", str(made.path), "--gate", gate, *form]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head does once it has its bytes
    told = process.stderr.read().decode()
    assert process.wait() == code, told
    assert "Traceback" not in told and f"gate {gate}" in told


# Progress


def test_a_rate_and_the_time_left_are_known_from_the_first_answers_on(tmp_path):
    run = tmp_path
    events = [
        {
            "time": 10.0,
            "stage": "answers",
            "kind": "progress",
            "done": 0,
            "total": 100,
            "unit": "base answers",
        },
        {
            "time": 14.0,
            "stage": "answers",
            "kind": "progress",
            "done": 20,
            "total": 100,
            "unit": "base answers",
        },
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    progress = Progress(run)
    progress.update()
    assert progress.stages["answers"].rate == 5.0 and progress.stages["answers"].seconds_left == 16.0


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, 32), (False, SAMPLES_IN_LOG)])
def test_a_terminal_shows_every_sample_as_it_comes(tmp_path, is_terminal, shown):
    samples = [{"question": f"Who is {n}?", "answer": "", "reason": "too short"} for n in range(32)]
    event = {"time": 1.0, "stage": "answers", "kind": "progress", "done": 5, "total": 64, "unit": "answers"}
    (tmp_path / "events.jsonl").write_text(json.dumps({**event, "samples": samples}) + "\n")
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200, color_system=None)
    with EventView(Progress(tmp_path), console) as view:
        view.update()
    assert console.file.getvalue().count("? -> (nothing) [rejected: too short]") == shown
