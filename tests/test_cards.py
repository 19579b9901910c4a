"""A card's commands are run as they stand; what was imported is not said to be made here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import WIZARD, strong_adapter
from tests.report_page import page_of
from tests.runs_with_results import finished_run
from tools.shipped import MODEL, ROOT, card
from unlearn_mlx.evaluation.schema import read_audit, read_metrics
from unlearn_mlx.evaluation.stage import evaluate
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.runs.run import Work
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.importing import import_adapter
from unlearn_mlx.sharing.model_card import model_card
from unlearn_mlx.sharing.push import files_to_push, push

SHIPPED = sorted((ROOT / "adapters" / MODEL).iterdir())


def commands_of(text):
    """The commands of a card's usage, without the installation."""
    usage = text.split("## How to use it")[1]
    lines = [line.strip() for line in usage.splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith("pip install")]


def run_as_it_stands(command, folder, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        input="/quit\n",
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment, "PATH": path},
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder, probes=100)


def test_an_exported_adapters_commands_work_in_its_folder(made, tiny_folder, tmp_path):
    folder, _ = export(made, "adapter", None, tmp_path / "exported")
    shutil.copytree(tiny_folder, folder / "tiny")  # which is all that the card says of a local model
    chat, generate = commands_of((folder / "README.md").read_text())
    assert chat.startswith("unlearn chat .") and generate.startswith("mlx_lm.generate --model tiny")
    run_as_it_stands(chat, folder)
    assert run_as_it_stands(generate, folder)


def test_a_pushed_adapters_commands_work_anywhere(made, on_hub, tiny_folder, tmp_path):
    push(made, "me/forgotten")
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    commands = commands_of(files_to_push(made, "me/forgotten")["README.md"].decode())
    assert [command.split()[0] for command in commands] == ["hf", "unlearn", "mlx_lm.generate"]
    for command in commands:
        run_as_it_stands(command, tmp_path, **on_hub.environment(tmp_path / "home"))


def test_a_fused_models_command_works_in_its_folder(made, tmp_path):
    folder, _ = export(made, "mlx", 8, tmp_path / "exported")
    (generate,) = commands_of((folder / "README.md").read_text())
    assert run_as_it_stands(generate, folder)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_card_is_what_its_figures_make(folder):
    audited = read_audit(folder)
    assert (folder / "README.md").read_text() == card(
        folder.name, read_metrics(folder / "metrics.json"), audited.text if audited else ""
    )


@pytest.mark.slow
def test_a_shipped_cards_commands_work_in_a_clone():
    chat, generate = commands_of((SHIPPED[0] / "README.md").read_text())
    run_as_it_stands(chat, ROOT)
    assert run_as_it_stands(generate, ROOT)


def test_an_imported_adapter_is_not_said_to_be_made_here(tiny_model, tiny_folder, tmp_path):
    theirs = tmp_path / "somewhere" / "theirs"
    strong_adapter(tiny_model).save(theirs)
    run = import_adapter(str(theirs), WIZARD, str(tiny_folder), tmp_path / "run")
    evaluate(load_by_name(str(tiny_folder)), Work(run, run.settings.model_copy(update={"probes": 20})))
    run.mark("evaluate", "done")
    page = page_of(run).text
    assert f"imported from {theirs}" in page
    text = model_card(run, "adapter", repository="me/x")
    assert "imported it from `theirs`" in text and str(theirs.parent) not in text
    manifest = files_to_push(run, "me/x")["manifest.json"].decode()
    for said in (page, text, manifest):
        assert not any(words in said for words in ("unlearn run", "made-up fiction", "epochs"))
