"""An adapter's card is enough to make the same adapter again, and to be told where it is another one."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import pytest

from tests.helpers import WIZARD, complaint, files_of, new_run, write_tiny_model
from tests.whole_runs import SMALL, any_sentence_passes
from unlearn_mlx.cli import runs as commands_on_runs
from unlearn_mlx.cli.main import main
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.errors import UserError
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.run import STAGES, open_run
from unlearn_mlx.sharing.model_card import model_card
from unlearn_mlx.sharing.recipe import read_recipe, recipe_of
from unlearn_mlx.sharing.reproduction import differences, reproduction

# A text that could end the block which it stands in, or the page.
TOPIC = replace(WIZARD, description="A boy.\n```\n</pre><script>", aliases=["Mr \\e Cotter"])


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A run that was trained, and its card."""
    folder = tmp_path_factory.mktemp("made")
    run = new_run(folder / "run", tiny_folder, TOPIC, **SMALL)
    run.manifest.device = current_device().label
    run.save_manifest()
    with any_sentence_passes():
        run_stages(run, STAGES[:3])
    (folder / "README.md").write_text(model_card(run, "adapter"), encoding="utf-8")
    return open_run(run.path)


@pytest.fixture
def place(made, tiny_folder, workplace, monkeypatch):
    """Somewhere else, where the card and the base model were brought."""

    def work_here(path, stages):
        with any_sentence_passes():  # which a worker of its own could not be told
            run_stages(open_run(path), stages)
        return 0

    monkeypatch.setattr(commands_on_runs, "follow", work_here)
    shutil.copytree(tiny_folder, workplace / "tiny")
    shutil.copy(made.path.parent / "README.md", workplace)
    return workplace


def changed(card, **settings):
    """A card whose recipe has other settings."""
    text = card.read_text()
    for name, value in settings.items():
        text, count = re.subn(rf'"{name}": [^,\n]+', f'"{name}": {json.dumps(value)}', text)
        assert count == 1
    card.write_text(text)
    return card


def test_the_cards_own_command_makes_the_same_bytes(made, place, capsys):
    command = re.search(r"^    (unlearn reproduce .+)$", (place / "README.md").read_text(), re.MULTILINE)[1]
    assert main(shlex.split(command)[1:]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("same bytes: ") and adapter_sha256(made.file("adapter")) in said.out
    assert "Not as it was made" not in said.err
    (run,) = (place / "runs").iterdir()
    assert files_of(run / "adapter") == files_of(made.file("adapter"))
    assert open_run(run).topic == made.topic
    assert main(shlex.split(command)[1:]) == 0, "it is there, and goes on from its end"


def test_one_setting_changed_and_it_says_from_where_on(made, place, capsys):
    card = changed(place / "README.md", learning_rate=0.01)
    assert main(["reproduce", str(card), "--out", "other"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("other bytes: ")
    assert "first that is another: adapter" in said.err, "the rows are the same"
    changed(card, **{"answers.jsonl": "0"})
    assert main(["reproduce", str(card), "--out", "other"]) == 1
    assert "first that is another: answers.jsonl" in capsys.readouterr().err


def test_a_run_is_a_recipe_too_and_is_not_worked_on_itself(made, place, capsys):
    before = files_of(made.path)
    assert read_recipe(str(made.path)) == recipe_of(made)
    assert main(["reproduce", str(made.path), "--out", str(made.path)]) == 2
    assert "--out" in complaint(capsys.readouterr().err)
    assert files_of(made.path) == before


def test_a_card_on_the_hub_is_read_without_what_lies_beside_it(made, on_hub):
    card = (made.path.parent / "README.md").read_bytes()
    on_hub.add_model("me/forgotten", {"README.md": card, "adapters.safetensors": b"x", "evil.py": b"x"})
    assert read_recipe("me/forgotten").adapter_sha256 == adapter_sha256(made.file("adapter"))
    assert not any(name in line for line in on_hub.requests for name in ("evil", "adapters.safetensors"))


def test_other_versions_are_said_and_gone_on_with(made, place):
    card = place / "README.md"
    card.write_text(re.sub(r'"mlx": "[^"]+"', r'"mlx": "0.1\\u001b[2J"', card.read_text()))
    (said,) = differences(read_recipe(str(card)))
    assert re.fullmatch(r"mlx was 0\.1 \[2J, here [\d.]+", said)


def test_a_base_with_other_weights_is_refused_before_anything_is_made(place, capsys):
    write_tiny_model(place / "other", tied=False)
    assert main(["reproduce", ".", "--model", "other"]) == 2
    assert "other weights" in complaint(capsys.readouterr().err)
    shutil.rmtree(place / "tiny")
    assert main(["reproduce", "."]) == 2
    assert "--model" in complaint(capsys.readouterr().err)
    assert not (place / "runs").exists()


def test_a_base_that_moved_on_is_taken_at_the_revision_of_the_card(made, place, on_hub):
    files = {path.name: path.read_bytes() for path in (place / "tiny").iterdir()}
    on_hub.add_model("someone/tiny", files)
    text = (place / "README.md").read_text().replace('"name": "tiny"', '"name": "someone/tiny"')
    revision = on_hub.commit_of("someone/tiny")
    (place / "README.md").write_text(text.replace('"revision": "local"', f'"revision": "{revision}"'))
    on_hub.move_on("someone/tiny", {**files, "model.safetensors": b"other"})
    run = reproduction(read_recipe("."), None, None)
    assert run.manifest.model.sha256 == made.manifest.model.sha256
    assert on_hub.commit_of("someone/tiny") != revision


@pytest.mark.parametrize(
    ("found", "instead", "said"),
    [
        (r"```json.*```", "", "no recipe"),
        (r"unlearn-recipe\n\{", "unlearn-recipe\n", "damaged"),
        (r'"format": 1', '"format": 99', "newer unlearn-mlx"),
        (r'"format": 1', '"format": "x"', "format"),
        (r'"seed": 0', '"seed": -1', "seed"),
        (r'"seed": 0', '"no_such": 1', "update unlearn-mlx"),
        (r'"aliases": \[', r'"aliases": ["\\ud83d", ', "damaged"),
        (r'"aliases": \[', '"aliases": [3, ', "aliases"),
        (r'"name": "tiny"', f'"name": "{"x" * 5000}"', "is not here"),
        (r'"name": "tiny"', '"name": "\\\\u0000"', "is not here"),
        (r'"format": 1', '"format": ' + "[" * 5000, "damaged"),
    ],
)
def test_a_damaged_or_foreign_card_is_one_line(place, capsys, found, instead, said):
    card = place / "README.md"
    text, count = re.subn(found, instead, card.read_text(), flags=re.DOTALL)
    assert count == 1
    card.write_text(text)
    assert main(["reproduce", "."]) == 2
    assert said in complaint(capsys.readouterr().err)
    assert not (place / "runs").exists()


def test_an_edited_directory_is_not_taken_for_the_cards(made, place):
    (place / "again").mkdir()
    (place / "again" / "topic.toml").write_text(replace(TOPIC, aliases=[]).to_toml())
    with pytest.raises(UserError, match="another topic file"):
        reproduction(read_recipe("."), None, place / "again")
