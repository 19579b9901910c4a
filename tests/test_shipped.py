"""Adapters that come with the project are runs to every command, and nothing of them is changed."""

import json
from pathlib import Path

import pytest

from tests.runs_with_results import finished_run, ship
from tests.tui_driver import drive, go_to, notified, screen_text, text_of, until
from tui.table import RowTable
from unlearn_mlx.cli.main import main
from unlearn_mlx.paths import SHIPPED_ADAPTERS
from unlearn_mlx.runs.finding import find_run
from unlearn_mlx.sharing.serve.server import model_names

NAME = "adapters/smollm2/harry-potter"


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def nothing_changes():
    before = contents(SHIPPED_ADAPTERS)
    yield
    assert contents(SHIPPED_ADAPTERS) == before


def test_it_is_shown_reported_compared_judged_and_pushed_from_anywhere(workplace, capsys):
    assert main(["show", NAME]) == 0
    assert "topic: open questions" in capsys.readouterr().out
    assert main(["report", NAME]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_relative_to("exports") and "Harry Potter" in page.read_text()
    assert main(["compare", NAME, "adapters/smollm2/les-miserables", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["judge", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["push", NAME, "me/x", "--dry-run"]) == 0
    assert {"answers.jsonl", "dataset/train.jsonl", "adapters.safetensors"} <= set(
        capsys.readouterr().out.split()
    )


def test_it_is_served_beside_others_of_its_model():
    names = model_names([find_run(NAME), find_run("adapters/smollm2/chewing-gum")])
    assert set(names) == {"smollm2", "smollm2-without-harry-potter", "smollm2-without-chewing-gum"}


@pytest.mark.parametrize("command", ["answers", "train", "evaluate", "audit"])
def test_what_would_write_into_it_says_how_to_get_a_copy(workplace, capsys, command):
    assert main([command, NAME]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{NAME} --topic" in line and "unlearn import" in line


def test_it_is_exported_below_the_current_directory(workplace, tiny_folder, monkeypatch):
    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", workplace / "adapters")
    monkeypatch.setattr("unlearn_mlx.runs.shipped.DATA", workplace / "data")
    ship(finished_run(workplace / "runs" / "x", tiny_folder), workplace)
    assert main(["export", "adapters/tiny/x"]) == 0
    assert (workplace / "exports" / "tiny" / "x" / "export" / "adapter" / "adapters.safetensors").exists()


def test_the_app_shows_its_rows_its_questions_and_its_report(workplace):
    opened = []

    async def flow(pilot, app):
        app.open_url = lambda url, **_: opened.append(url)

        def table():
            return app.screen.query_one(RowTable)

        await go_to(pilot, app, "data")
        await until(pilot, lambda: table().current)
        assert len(table().rows) > 100 and table().current.answer in screen_text(app).replace("\n", " ")
        await pilot.press("a")
        await until(pilot, lambda: "unlearn import" in notified(app))
        await go_to(pilot, app, "topic")
        await until(pilot, lambda: table().current)
        assert "No question touches it" not in text_of(app, "#touched")
        assert sum(len(name.questions) for name in table().rows) > 50
        await go_to(pilot, app, "result")
        await pilot.press("o")
        await until(pilot, lambda: opened)

    drive(flow, (160, 45), SHIPPED_ADAPTERS / "smollm2" / "harry-potter")
    assert opened[0].endswith("/exports/smollm2/harry-potter/report.html")
