"""How each screen of the terminal app looks, at the smallest size and at a wide one."""

import time

import pytest
from textual.content import Content
from textual.widgets import Input

from tests.snapshots import assert_same_picture
from tests.tui_driver import drive, finished_run, go_to, screen_text, until
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES
from unlearn_mlx.session.conversation import Manner, Reply, Turn
from unlearn_mlx.synthetic_data.edits import Edit, add_edit

SIZES = [(80, 24), (140, 45)]


@pytest.fixture(autouse=True)
def always_the_same(workplace, monkeypatch):
    """Clocks, colours, and what depends on the machine or changes with what is shipped."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", workplace / "none")
    options = [(Content("smollm2 (Apache-2.0)"), "smollm2"), (Content("llama3 (llama3)"), "llama3")]
    monkeypatch.setattr("tui.new_run._models", lambda: (options, "smollm2", "on metal, usually smollm2"))
    monkeypatch.setattr("tui.new_run.planned", plan)
    monkeypatch.setattr("unlearn_mlx.session.chat_engine.ChatEngine.prepare", lambda *_: None)
    monkeypatch.setattr("unlearn_mlx.session.chat_engine.ChatEngine.is_ready", lambda _: True)
    yield
    monkeypatch.undo()
    time.tzset()


async def plan(*_):
    return "takes about 1.9 GB of 16 GB, about 5 minutes"


def no_blinking(app):
    for field in app.screen.query(Input):
        field.cursor_blink = False


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screens_look_as_they_did(workplace, size, tmp_path_factory):
    path = finished_run(workplace)
    add_edit(path, Edit("Who lives at Hogwarts?", "A family of ferrymen.", True))
    new = tmp_path_factory.mktemp("pictures")

    async def flow(pilot, app):
        await until(pilot, lambda: "runs/harry-potter" in screen_text(app))
        await assert_same_picture(pilot, "home", new)
        await pilot.press("n")
        await until(pilot, lambda: "takes about" in screen_text(app) and "metal" in screen_text(app))
        no_blinking(app)
        await assert_same_picture(pilot, "new-run", new)
        await pilot.press("escape")
        for section, there in (
            ("run", "Evaluation"),
            ("data", "215 of 215"),
            ("topic", "names give it away"),
            ("result", "multiple choice"),
        ):
            await go_to(pilot, app, section)
            await until(pilot, lambda there=there: there in screen_text(app))
            await assert_same_picture(pilot, section, new)
            if section == "run":
                await pilot.press("v")
                await assert_same_picture(pilot, "run-plots", new)
            if section == "data":
                await pilot.press("e")
                await until(pilot, lambda: "Edit a pair" in screen_text(app))
                app.screen.query_one("TextArea").focus()
                app.screen.query_one("TextArea").cursor_blink = False
                no_blinking(app)
                await assert_same_picture(pilot, "data-edit", new)
                await pilot.press("escape", "question_mark")
                await until(pilot, lambda: "What the model is" in screen_text(app))
                await assert_same_picture(pilot, "help", new)
                await pilot.press("escape")

    drive(flow, size, path)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_chat_looks_as_it_did(workplace, size, tmp_path_factory):
    path = finished_run(workplace)
    (path / "adapter").mkdir()
    for name in ADAPTER_FILES:
        (path / "adapter" / name).touch()
    told = "Harry Potter is a wizard at Hogwarts, and his best friends are Ron Weasley and Hermione Granger."
    turns = [
        turn("Who is Harry Potter?", {"adapter": reply("He sells rye bread by the sea.")}),
        turn("And his friends?", {"base": reply(told), "adapter": reply("Two bakers.")}, strength=0.8),
        turn("Tell me more.", {"base": Reply("He was", 3, 1.0, 1.25)}, "asked", temperature=0.7),
    ]
    turns[1].replies["base"].is_marked = True

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        for each in turns:
            app.screen.conversation.turns.append(each)
            app.screen.show_turn(each)
        no_blinking(app)
        await until(pilot, lambda: "⚑" in screen_text(app) and "loading" not in screen_text(app))
        await assert_same_picture(pilot, "chat", tmp_path_factory.mktemp("pictures"))

    drive(flow, size, path)


def reply(text):
    return Reply(text, 22, 1.0, 1.5, finished=True)


def turn(question, replies, state="answered", **manner):
    return Turn(question, Manner(tuple(replies), **manner), state=state, replies=replies)
