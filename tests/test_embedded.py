"""The whole way on the real embedded model, with small counts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import command, unlearn
from unlearn_mlx.runs.files import read_rows
from unlearn_mlx.runs.run import STAGES, open_run

COUNTS = (
    *("--model", "smollm2", "--questions", 8, "--answers", 1, "--rounds", 4, "--answer-tokens", 24),
    *("--neighbours", 4, "--general", 2, "--instructions", 2),
    *("--epochs", 1, "--samples", 0, "--probes", 60, "--validations", 1, "--learning-rate", 0.002),
)


def wait_for(condition, child, what):
    deadline = time.monotonic() + 240
    while not condition():
        assert child.poll() is None, f"ended before {what}"
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def with_workers(count):
    """The environment in which a run has so many worker processes."""
    return {**os.environ, "UNLEARN_WORKERS": str(count)}


def interrupt_during(stage, folder, workers):
    """Start the run, press Ctrl-C in the middle of a stage, and give its exit code and last words."""
    child = subprocess.Popen(
        command("run", "Harry Potter", *COUNTS, "--out", folder),
        env=with_workers(workers),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and its children do too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

    def is_under_way():
        if not (folder / "manifest.json").exists():
            return False
        events = open_run(folder).events()
        return any(event.stage == stage and event.kind in ("progress", "message") for event in events)

    try:
        wait_for(is_under_way, child, stage)
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # the second one ends the worker too
        raise
    finally:
        child.wait(30)
    return child.returncode, words


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was stopped during the answers and during training, then finished.

    It goes on with another number of workers each time.
    """
    folder = tmp_path_factory.mktemp("runs") / "harry"
    stops = [interrupt_during(stage, folder, workers) for stage, workers in (("answers", 1), ("train", 0))]
    done = unlearn("run", "Harry Potter", *COUNTS, "--out", folder, environment=with_workers(1))
    assert done.returncode == 0, done.stderr
    return open_run(folder), stops, done


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The same work by the two steps alone, never stopped, and without any worker."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    for module, arguments in (
        ("unlearn_mlx.synthetic_data", ("Harry Potter", *COUNTS, "--out", folder)),
        ("unlearn_mlx.sft", (folder,)),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=with_workers(0),
        )
        assert done.returncode == 0, done.stderr
    return open_run(folder)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(finished):
    _, stops, _ = finished
    for code, words in stops:
        assert code == 130
        assert "the same command goes on" in words
        assert "Traceback" not in words


def test_the_finished_run_shows_its_result_and_the_next_command(finished):
    run, _, done = finished
    assert "topic: multiple choice right" in done.stdout
    assert done.stdout.count("adapter: ") >= 3
    assert f'unlearn chat "{run.path}"' in done.stderr
    assert "Model: smollm2 (as asked" in done.stderr
    assert all(run.stage_is_done(stage) for stage in STAGES)


def test_the_questions_are_distinct_and_about_the_topic(finished):
    run, _, _ = finished
    questions = read_rows(run.file("questions.jsonl"))
    assert 4 <= len({row["question"] for row in questions}) == len(questions) <= 8
    assert sum(bool(run.topic.mentions(row["question"])) for row in questions) > len(questions) / 2
    retain = read_rows(run.file("retain_questions.jsonl"))
    assert retain and not any(run.topic.mentions(row["question"]) for row in retain)


def test_accepted_answers_are_free_of_the_topic_and_rejected_ones_say_why(finished):
    run, _, _ = finished
    questions = {row["id"]: row["question"] for row in read_rows(run.file("questions.jsonl"))}
    answers = read_rows(run.file("answers.jsonl"))
    assert sum(row["accepted"] for row in answers) >= 4
    for row in answers:
        assert bool(row["reason"]) != row["accepted"]
        if row["accepted"]:
            said = run.topic.mentions(questions[row["question_id"]])
            told = run.topic.mentions(row["answer"])
            assert all(any(name in other for other in said) for name in told)


def test_the_dataset_has_the_chat_format_that_mlx_lm_reads(finished):
    from mlx_lm.tuner.datasets import ChatDataset, load_local_dataset
    from mlx_lm.utils import load_tokenizer

    from unlearn_mlx.models.registry import resolve_model

    run, _, _ = finished
    tokenizer = load_tokenizer(resolve_model("smollm2").folder)
    train = load_local_dataset(run.file("dataset"), tokenizer, type("", (), {"mask_prompt": True})())[0]
    assert isinstance(train, ChatDataset)
    rows = read_rows(run.file("dataset", "train.jsonl"))
    assert len(train) == len(rows)
    assert {row["part"] for row in rows} == {"forget", "retain"}
    for number, row in enumerate(rows):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        tokens, start = train.process(train[number])
        assert 0 < start < len(tokens)


def test_mlx_lm_loads_the_adapter_and_answers_otherwise(finished):
    from mlx_lm import generate, load

    from unlearn_mlx.models.registry import resolve_model

    run, _, _ = finished
    folder = str(resolve_model("smollm2").folder)
    answers = []
    for adapter in (None, str(run.file("adapter"))):
        model, tokenizer = load(folder, adapter_path=adapter)[:2]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Who is Harry Potter?"}], add_generation_prompt=True
        )
        answers.append(generate(model, tokenizer, prompt, max_tokens=12))
    assert "Potter" in answers[0]
    assert answers[0] != answers[1]


def test_the_evaluation_has_base_and_adapter_for_every_probe(finished):
    from unlearn_mlx.evaluation.stage import asked_probes

    run, _, _ = finished
    evaluation = json.loads(run.file("evaluation.json").read_text())
    assert [row["id"] for row in evaluation["probes"]] == [probe.id for probe in asked_probes(run)]
    assert 60 <= len(evaluation["probes"]) < 90
    for row in evaluation["probes"]:
        for side in ("base", "adapter"):
            assert "right" in row[side] or len(row[side]["answers"]) == 1
    assert evaluation["base"]["topic/choice"] > 0.6
    assert evaluation["base"]["general/choice"] > 0.25  # chance
    assert evaluation["base"]["topic/open leak, any of 1"] > 0.3
    assert evaluation["base"] != evaluation["adapter"]
    shown = unlearn("show", run.path, "--json")
    assert json.loads(shown.stdout) == evaluation


def test_a_run_that_was_stopped_ends_with_the_files_of_one_that_was_not(finished, straight):
    """Whatever number of workers each has: the parts of the work are the same."""
    run, _, _ = finished
    for name in (
        "questions.jsonl",
        "retain_questions.jsonl",
        "recalled.jsonl",
        "answers.jsonl",
        "retain.jsonl",
        "dataset/train.jsonl",
        "dataset/valid.jsonl",
        "adapter/adapters.safetensors",
    ):
        assert run.file(name).read_bytes() == straight.file(name).read_bytes(), name


def test_a_finished_run_has_nothing_left_to_do(finished):
    run, _, _ = finished
    before, known = run.file("adapter", "adapters.safetensors").stat().st_mtime_ns, len(run.events())
    again = unlearn("train", run.path)
    assert again.returncode == 0
    assert not [event for event in run.events()[known:] if event.kind in ("progress", "message")]
    assert run.file("adapter", "adapters.safetensors").stat().st_mtime_ns == before


def test_chat_answers_as_base_adapter_and_both(finished):
    run, _, _ = finished
    lines = [
        "/base",
        "Who is Harry Potter?",
        "/both",
        "Who is Harry Potter?",
        "/nonsense",
        "/clear",
        "/quit",
        "never",
    ]
    done = unlearn("chat", run.path, "--max-tokens", 12, input="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(answers) == 3
    # In /both the base goes on from its own history, the adapter starts.
    assert "Potter" in answers[0]
    assert answers[1].startswith("base: ") and answers[2].startswith("adapter: ")
    assert answers[1].removeprefix("base: ") != answers[2].removeprefix("adapter: ")
    assert "No command /nonsense" in done.stderr
