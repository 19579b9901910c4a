"""Publishing a run, by the hub's real client, on a hub of our own."""

import pytest

from tests.helpers import complaint, files_of, unlearn
from tests.hub import TOKEN
from tests.runs_with_results import finished_run
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.evaluation.schema import open_leak, read_evaluation
from unlearn_mlx.models.hub_errors import without_secrets
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.sharing.push import files_to_push, push

NAME = "me/forgotten"


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.fixture
def run(made):
    made.file("push.json").unlink(missing_ok=True)
    return open_run(made.path)


def test_everything_goes_in_one_commit_to_a_private_repository(on_hub, run):
    url = push(run, NAME)
    assert url.startswith(on_hub.url)
    there = on_hub.repositories[NAME]
    assert there["private"] is True
    assert set(there["files"]) == set(files_to_push(run, NAME))
    assert there["files"]["adapters.safetensors"] == run.file("adapter", "adapters.safetensors").read_bytes()
    assert there["files"]["dataset/train.jsonl"] == run.file("dataset", "train.jsonl").read_bytes()
    assert sum("/commit/" in line for line in on_hub.requests) == 1


def test_public_is_only_as_asked(on_hub, run):
    push(run, NAME, public=True)
    assert on_hub.repositories[NAME]["private"] is False


def test_what_was_pushed_names_no_folder_of_this_machine(run):
    for name, content in files_to_push(run, NAME).items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert run.model_name.encode() not in data, name
        assert str(run.path.parent).encode() not in data, name


def test_a_name_that_is_taken_is_refused_and_left_alone(on_hub, run):
    on_hub.add_model(NAME, {"other.txt": b"mine"})
    with pytest.raises(UserError, match="already"):
        push(run, NAME)
    assert on_hub.files(NAME) == {"other.txt": b"mine"}
    push(run, NAME, update=True)
    assert {"other.txt", "README.md"} <= set(on_hub.files(NAME))


def test_an_interrupted_push_goes_on_and_sends_nothing_twice(on_hub, run):
    on_hub.faults = [("POST .*/commit/main", 0, 100)]
    with pytest.raises(EnvironmentCannot, match="same command"):
        push(run, NAME)
    assert on_hub.files(NAME) == {}
    assert len(on_hub.sent) == 1, "the weights are there"
    on_hub.faults = []
    push(run, NAME)
    assert "adapters.safetensors" in on_hub.files(NAME)
    assert list(on_hub.sent.values()) == [1]


def test_a_push_cut_off_in_the_weights_goes_on(on_hub, run):
    on_hub.faults = [("PUT /upload", 0, 100)]
    with pytest.raises(EnvironmentCannot):
        push(run, NAME)
    on_hub.faults = []
    push(run, NAME)
    assert "adapters.safetensors" in on_hub.files(NAME)


@pytest.mark.parametrize("where", ["repos/create", "commit/main", "lfs/objects"])
@pytest.mark.parametrize(
    ("status", "way_out"),
    [(401, "hf auth login"), (403, "token may not write"), (429, "wait"), (500, "trouble")],
)
def test_a_refusal_is_one_line_that_names_the_way_out(on_hub, run, where, status, way_out):
    on_hub.faults = [(where, status, 100)]
    with pytest.raises(EnvironmentCannot) as caught:
        push(run, NAME)
    message = str(caught.value)
    assert way_out in message and "\n" not in message
    assert TOKEN not in message
    assert on_hub.repositories.get(NAME, {"files": {}})["files"] == {}


def test_a_short_trouble_is_waited_out(on_hub, run):
    on_hub.faults = [("PUT /upload", 500, 2)]
    push(run, NAME)
    assert "adapters.safetensors" in on_hub.files(NAME)


def test_a_commit_that_another_came_before_is_said(on_hub, run):
    on_hub.faults = [("commit/main", 409, 1)]
    with pytest.raises(EnvironmentCannot, match="changed meanwhile"):
        push(run, NAME)


def test_nobody_logged_in_is_said(on_hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(EnvironmentCannot, match="hf auth login"):
        on_hub.faults = [("repos/create", 401, 100)]
        push(run, NAME)


@pytest.mark.parametrize("name", ["forgotten", "me/../x", "a/b/c", "/x", "me/", "me/x y", "https://x/y"])
def test_a_bad_name_is_refused_before_anything_is_sent(on_hub, run, name):
    with pytest.raises(UserError, match="OWNER/NAME"):
        push(run, name)
    assert on_hub.requests == []


def test_a_link_out_of_the_run_is_not_followed(on_hub, tiny_folder, tmp_path):
    run = finished_run(tmp_path / "run", tiny_folder)
    secret = tmp_path / "secret.jsonl"
    write_rows(secret, [{"password": "x"}])
    run.file("questions.jsonl").unlink()
    run.file("questions.jsonl").symlink_to(secret)
    with pytest.raises(UserError, match="leaves the run"):
        push(run, NAME)
    assert on_hub.requests == []


def test_the_command_shows_all_files_and_sends_none(hub, run, tmp_path):
    done = unlearn("push", run.path, NAME, "--dry-run", environment=hub.environment(tmp_path))
    assert done.returncode == 0
    listed = [line.split()[-1] for line in done.stdout.splitlines()]
    assert listed == sorted(files_to_push(run, NAME))
    assert hub.requests == []


def test_the_token_is_in_no_output_and_no_file(hub, run, tmp_path):
    hub.faults = [("repos/create", 403, 1)]
    refused = unlearn("push", run.path, NAME, environment=hub.environment(tmp_path))
    assert refused.returncode == 3
    assert "may not write" in complaint(refused.stderr)
    done = unlearn("push", run.path, NAME, environment=hub.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(hub.url)
    for output in (refused, done):
        assert TOKEN not in output.stdout + output.stderr
    for name, data in {**files_of(run.path), **hub.files(NAME)}.items():
        assert TOKEN.encode() not in data, name


def test_a_message_that_repeats_the_token_is_cut(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-in-the-usual-form")
    said = without_secrets("sent Bearer not-in-the-usual-form and hf_abcdefghij to us")
    assert said == "sent *** and *** to us"


def test_the_card_says_what_matters_and_trusts_no_name(run):
    card = files_to_push(run, NAME)["README.md"].decode()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "pipeline_tag: text-generation" in head and "license: other" in head
    prose = "\n".join(line for line in body.splitlines() if not line.startswith("    "))
    assert "<b>" not in prose and "*Bold*" not in prose.replace("\\*", "")
    for section in ("Base model and licence", "Method", "How well it worked", "Limits", "How to use it"):
        assert f"## {section}" in body
    assert "| topic: open questions that leak in " in body
    assert "not proven erased" in body
    evaluation = read_evaluation(run.path)
    assert f"{evaluation.adapter[open_leak(evaluation)]:.0%}" in body
