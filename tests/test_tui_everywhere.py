"""Keys that do the same on every screen and in every dialog, and what the app keeps."""

import pytest
from textual import events
from textual.widgets import Footer, Input
from textual.widgets._toast import ToastRack

from tests.tui_driver import drive, finished_run, go_to, screen_text, text_of, until, write
from tui.app import UnlearnApp
from tui.examples import Example
from unlearn_mlx.paths import SHIPPED_ADAPTERS


@pytest.fixture(autouse=True)
def no_model(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("unlearn_mlx.session.chat_engine.ChatEngine.prepare", lambda *_: None)
    monkeypatch.setattr("unlearn_mlx.session.chat_engine.ChatEngine.is_ready", lambda _: True)


def footer(app):
    return {str(key.description) for key in app.screen.query("FooterKey")}


def test_a_question_mark_is_help_everywhere_and_a_letter_in_a_line_that_is_written(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        for section in ("home", "data", "topic", "chat", "result"):
            await go_to(pilot, app, section)
            await pilot.press("question_mark")
            await until(pilot, lambda: app.screen.query("#help"))
            await pilot.press("question_mark")
            await until(pilot, lambda: len(app.screen_stack) == 1)
        await go_to(pilot, app, "chat")
        await write(pilot, "Who")
        await pilot.press("question_mark")
        assert app.screen.query_one("#question", Input).value == "Who?"
        await go_to(pilot, app, "topic")
        await until(pilot, lambda: app.screen.query_one("#names").rows)
        await pilot.press("n")
        await until(pilot, lambda: "What is it?" in screen_text(app))
        await pilot.press("question_mark")
        await until(pilot, lambda: app.screen.query("#help"))

    drive(flow, (100, 60), path)


def test_under_a_dialog_stand_the_keys_of_the_dialog(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "data")
        await until(pilot, lambda: app.screen.query_one("#pairs").rows)
        await pilot.press("e")
        await until(pilot, lambda: app.screen.query(Footer) and footer(app))
        assert footer(app) == {"Keep", "Back", "More"}
        last = screen_text(app).splitlines()[-1]
        assert "Keep" in last and "Judge" not in last

    drive(flow, (100, 30), path)


def test_the_palette_holds_what_every_screen_can_do_and_does_it(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        commands = {command.title: command for command in app.get_system_commands(app.screen)}
        assert {"Home: New run", "Run: Go on", "Data: Add", "Result: Open report", "Topic: Add"} <= set(
            commands
        )
        assert {"Mode", "Copy", "Theme", "Quit", "Home", "Result"} <= set(commands)
        await commands["Home: New run"].callback()
        await until(pilot, lambda: "what is to be forgotten?" in screen_text(app))
        assert app.current_mode == "home"

    drive(flow, run=path)


def test_what_is_told_leaves_the_line_of_the_chat_free(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        app.notify("x" * 200)
        app.notify("y" * 200)
        await until(pilot, lambda: "yyy" in screen_text(app))
        line, rack = app.screen.query_one("#question").region, app.screen.query_one(ToastRack).region
        assert rack.bottom <= line.y

    drive(flow, (80, 24), path, notifications=True)


def test_the_theme_is_kept(workplace):
    async def flow(pilot, app):
        app.theme = "nord"
        await pilot.pause()

    drive(flow)
    assert UnlearnApp().theme == "nord"


def test_all_lines_that_are_pasted_stay(workplace):
    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        app.screen.query_one("#question").focus()
        app.screen.post_message(events.Paste("\nfirst\nsecond\n"))
        await until(pilot, lambda: app.screen.query_one("#question", Input).value == "first second")

    drive(flow)


def test_a_chat_begins_with_questions_to_pick(workplace):
    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        await until(pilot, lambda: len(app.screen.query(Example)) == 6)
        first, second = [example.question for example in app.screen.query(Example)][:2]
        assert "enter sends" in screen_text(app) and first in screen_text(app)
        await pilot.press("down", "down")
        assert app.screen.query_one("#question", Input).value == second
        await pilot.press("up")
        assert app.screen.query_one("#question", Input).value == first
        await pilot.click(app.screen.query(Example).last())
        last = app.screen.query(Example).last().question
        await until(pilot, lambda: app.screen.query_one("#question", Input).value == last)
        assert "adapter answers" in text_of(app, "#chat-state")

    drive(flow, run=SHIPPED_ADAPTERS / "smollm2" / "harry-potter")
