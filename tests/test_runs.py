import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import WIZARD, files_of, new_run
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.finding import find_run
from unlearn_mlx.runs.run import create_run, open_run, run_path, save_topic
from unlearn_mlx.session.catalog import run_entries
from unlearn_mlx.topics import Topic

MODEL = {"name": "smollm2", "revision": "1", "sha256": "abc"}
SETTINGS = make_settings("quick")


def made(path, topic=WIZARD, model=MODEL, settings=SETTINGS):
    return create_run(path, topic, model, settings, "cpu")


def change_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_a_run_comes_back_as_it_was(tmp_path):
    run = made(tmp_path / "run")
    run.mark("questions", "done")
    again = made(tmp_path / "run")
    assert again.manifest == run.manifest == open_run(tmp_path / "run").manifest
    assert again.stage_is_done("questions") and not again.stage_is_done("train")
    assert again.settings == SETTINGS
    assert again.topic.names == WIZARD.names


def test_the_manifest_says_what_a_result_depends_on(tmp_path, tiny_folder):
    manifest = new_run(tmp_path / "run", tiny_folder).manifest
    assert len(manifest.model.sha256) == 64
    assert {"mlx", "mlx-lm", "unlearn-mlx"} <= manifest.versions.keys()
    assert manifest.settings["seed"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"topic": Topic("Volcanoes")}, "belongs to the topic 'Harry Potter'"),
        ({"model": {**MODEL, "name": "llama3"}}, "--model smollm2"),
        ({"model": {**MODEL, "sha256": "other"}}, "other weights"),
        (
            {"settings": make_settings("quick", questions=99)},
            f"--questions {make_settings('quick').questions}, not 99",
        ),
    ],
)
def test_a_directory_of_other_work_is_refused_and_kept(tmp_path, change, said):
    made(tmp_path / "run").mark("questions", "running")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        made(tmp_path / "run", **change)
    assert "--out" in str(caught.value) and "\n" not in str(caught.value)
    assert files_of(tmp_path) == before


def test_a_run_of_a_newer_version_is_refused_and_kept(tmp_path):
    made(tmp_path / "run")
    change_manifest(tmp_path / "run", format=99)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="newer unlearn-mlx"):
        made(tmp_path / "run")
    assert files_of(tmp_path) == before


def test_settings_that_this_version_does_not_know_are_refused(tmp_path):
    run = made(tmp_path / "run")
    change_manifest(tmp_path / "run", settings={**run.manifest.settings, "no_such": 1})
    with pytest.raises(UserError, match="no-such"):
        made(tmp_path / "run")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "one"}'])
def test_a_damaged_manifest_is_one_clear_line(tmp_path, text):
    made(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_run(tmp_path / "run")


def test_a_format_that_is_no_number_is_one_clear_line(tmp_path):
    made(tmp_path / "run")
    change_manifest(tmp_path / "run", format="one")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        open_run(tmp_path / "run")


def test_files_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no run"):
        made(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        made(tmp_path / "notes.txt")
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", [".DS_Store", "._topic.toml", "Thumbs.db"])
def test_a_folder_that_holds_only_what_the_system_leaves_is_free(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0")
    assert open_run(made(tmp_path).path).topic.name == WIZARD.name


def test_an_edited_topic_file_is_kept(tmp_path):
    edited = Topic("Harry Potter", aliases=["The Boy Who Lived"])
    save_topic(tmp_path / "run" / "topic.toml", edited)
    assert "The Boy Who Lived" in made(tmp_path / "run").topic.names


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    run = made(tmp_path / "run")
    script = (
        "import sys; from pathlib import Path\n"
        "from unlearn_mlx.runs.run import open_run\n"
        "from unlearn_mlx.errors import UserError\n"
        "try:\n    with open_run(Path(sys.argv[1])).writing(): print('in')\n"
        "except UserError as error: print(error)\n"
    )

    def other_process():
        done = subprocess.run([sys.executable, "-c", script, str(run.path)], capture_output=True, text=True)
        return done.stdout + done.stderr

    with run.writing():
        assert "another process works on" in other_process()
    assert other_process() == "in\n"


def test_events_survive_a_torn_line(tmp_path):
    run = made(tmp_path / "run")
    run.event("train", "message", text="one\ntwo")
    with run.file("events.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "sta')
    run.event("train", "message", text="three")
    assert [event.text for event in run.events()] == ["one\ntwo", "three"]


def test_runs_are_found_by_path_topic_and_slug(workplace):
    run = made(run_path("Harry Potter"))
    for name in ("runs/harry-potter", "Harry Potter", "harry-potter", str(workplace / "runs/harry-potter")):
        assert find_run(name).manifest == run.manifest
    assert [entry.topic_name for entry in run_entries()] == ["Harry Potter"]
    with pytest.raises(UserError, match="there are harry-potter"):
        find_run("Volcanoes")


@pytest.mark.parametrize(("name", "former"), [("C++", "c"), ("ポット", "ホット"), (".NET", "net")])
def test_a_run_that_an_earlier_version_made_is_found_by_its_topic(workplace, name, former):
    run = made(Path("runs") / former, topic=Topic(name))
    assert find_run(name).manifest == run.manifest
    assert run_path(name) == Path("runs") / former


def test_names_that_differ_in_signs_alone_have_runs_of_their_own(workplace):
    made(run_path("C"), topic=Topic("C"))
    assert len({run_path(name) for name in ("C", "C++", "C#")}) == 3


@pytest.mark.parametrize("name", ["runs/harry-poter", "./runs/harry-poter", "runs/harry-potter/adapter"])
def test_a_path_that_leads_to_no_run_is_told_as_it_was_typed(workplace, name):
    made(run_path("Harry Potter")).file("adapter").mkdir()
    with pytest.raises(UserError, match="no run at") as caught:
        find_run(name)
    assert str(caught.value).startswith(f"no run at {Path(name)}: ")
    with pytest.raises(UserError, match="no run at runs/ac-dc: there are harry-potter"):
        find_run("AC/DC")


@pytest.mark.parametrize("name", ["", "../..", "x" * 5000, "/" + "x" * 5000, "🧙", "a\nb", "/a\nb"])
def test_no_name_finds_a_run_that_is_not_there(workplace, name):
    with pytest.raises(UserError, match="no run at") as caught:
        find_run(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
