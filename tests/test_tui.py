"""The terminal app, as somebody uses it: under a pilot, on recorded events and on the real engine."""

import json
import subprocess
import sys

from tests.helpers import strong_adapter
from tests.tui_driver import (
    drive,
    finished_run,
    go_to,
    notified,
    screen_text,
    text_of,
    tiny_chat,
    until,
    write,
)
from tui.table import RowTable
from tui.turn_view import TurnView
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.conversation import Manner, Turn


def current(app):
    return app.screen.query_one(RowTable).current


# Home


def test_home_lists_runs_and_shipped_adapters_and_opens_the_one_under_the_cursor(workplace):
    finished_run(workplace)

    async def flow(pilot, app):
        await until(pilot, lambda: "Les Misérables" in screen_text(app))
        assert "67% → 25%" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.current_mode == "result")
        assert "open questions that leak" in screen_text(app)

    drive(flow)


def test_every_section_is_a_number_key_and_every_action_is_in_palette_footer_and_help(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        for key, section in enumerate(("home", "run", "data", "topic", "chat", "result"), start=1):
            await pilot.press("escape" if section == "result" else "f24", f"f{key}")
            await until(pilot, lambda section=section: app.current_mode == section)
            await until(pilot, lambda: getattr(app.screen, "is_built", False))
            footer = {str(key.description) for key in app.screen.query("FooterKey")}
            own = {binding.description for binding in type(app.screen).BINDINGS}
            assert own & footer and {"Quit", "Help", "More"} <= footer
            palette = {command.title for command in app.get_system_commands(app.screen)}
            assert footer | own <= palette | {"More"}
            await pilot.press("question_mark")
            await until(pilot, lambda: "arrow keys scroll" in screen_text(app))
            assert all(name in screen_text(app) for name in footer | own)
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)

    drive(flow, (80, 120), path)


def test_a_run_that_was_cut_off_says_so_and_offers_to_go_on(workplace):
    path = finished_run(workplace)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["stages"]["train"]["state"] = "running"
    del manifest["stages"]["evaluate"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "evaluation.json").unlink()

    async def flow(pilot, app):
        await until(pilot, lambda: "was cut off" in screen_text(app))
        assert "r on its line goes on" in screen_text(app)

    drive(flow)


def test_a_damaged_run_is_named_and_the_others_are_still_there(workplace):
    finished_run(workplace)
    (workplace / "runs" / "broken").mkdir()
    (workplace / "runs" / "broken" / "manifest.json").write_text("{")

    async def flow(pilot, app):
        await until(pilot, lambda: "Les Misérables" in screen_text(app))
        assert "broken" in screen_text(app)

    drive(flow)


# Data


def test_pairs_are_searched_judged_edited_and_undone(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "data")
        await until(pilot, lambda: current(app))
        await pilot.press("slash")
        await write(pilot, "hogwarts")
        await pilot.press("enter")
        await until(pilot, lambda: "hogwarts" in (current(app).question + current(app).answer).lower())
        was = current(app)
        await pilot.press("a")
        await until(pilot, lambda: current(app).is_by_hand)
        assert current(app).accepted != was.accepted
        await pilot.press("u")
        await until(pilot, lambda: not current(app).is_by_hand)
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        app.screen.query_one("Input").value = "What is Hogwarts to you?"
        app.screen.query_one("TextArea").text = "A ferry on the Rhine."
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "1 by hand" in text_of(app, "#counts"))

    drive(flow, run=path)
    assert "A ferry on the Rhine." in (path / "edits.jsonl").read_text()


# Topic


def test_a_name_that_is_added_stands_in_the_topic_file(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "topic")
        await until(pilot, lambda: current(app))
        assert "Who was Harry Potter?" in screen_text(app)
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.click("#places")
        await until(pilot, lambda: app.screen.query("Input"))
        await write(pilot, "Gringotts Vault, Vault 713")
        await pilot.press("enter")
        await until(pilot, lambda: "68 names" in text_of(app, "#counts"))
        assert open_run(path).topic.entities["places"]["Gringotts Vault"] == ["Vault 713"]

        await pilot.press("g", "e")
        await until(pilot, lambda: "own name stays" in notified(app))
        assert "Gringotts Vault" in (path / "topic.toml").read_text()
        await pilot.press("u")
        await until(pilot, lambda: "67 names" in text_of(app, "#counts"))

    drive(flow, run=path)
    assert "Gringotts Vault" not in open_run(path).topic.entities["places"]


# Chat


def test_chat_answers_toggles_in_the_middle_and_shows_both(workplace, tiny_model):
    path = tiny_chat(workplace, tiny_model, strong_adapter(tiny_model))

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        await until(pilot, lambda: "loading" not in text_of(app, "#chat-state"), 60)
        screen = app.screen
        screen.query_one("#length").value = 16
        modes = []
        for _ in range(3):
            await write(pilot, "Who is Harry Potter?")
            await pilot.press("enter")
            turns = len(modes) + 1
            await until(pilot, lambda turns=turns: len(screen.conversation.turns) == turns)
            await until(pilot, lambda: screen._answering is None, 60)
            modes.append(tuple(screen.conversation.turns[-1].replies))
            await pilot.press("ctrl+t")
        assert sorted(modes, key=len) == [("adapter",), ("base",), ("base", "adapter")] or set(modes) == {
            ("adapter",),
            ("base",),
            ("base", "adapter"),
        }
        said = [reply.text for turn in screen.conversation.turns for reply in turn.replies.values()]
        assert all(said) and said[0] != said[1]
        assert "/s" in str(screen.query(TurnView).last().query_one(".base-heading").visual)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: (path / "marks.jsonl").exists())
        await pilot.press("ctrl+s")
        await until(pilot, lambda: list((path / "chats").glob("*.md")))

    drive(flow, run=path)
    assert "Who is Harry Potter?" in next((path / "chats").glob("*.md")).read_text()


def test_a_marked_reply_is_mended_by_a_key(workplace, tiny_model, monkeypatch):
    path = tiny_chat(workplace, tiny_model, strong_adapter(tiny_model))
    started = []

    def start(run, stages):
        started.append(list(stages))
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr("unlearn_mlx.session.processes.start_worker", start)

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        await pilot.press("f8")
        await until(pilot, lambda: "nothing is marked" in notified(app))
        turn = Turn("Who is Harry Potter?", Manner(("adapter",)), state="answered")
        turn.replies["adapter"].text = "A wizard of Hogwarts."
        app.screen.conversation.turns.append(turn)
        app.screen.show_turn(turn)
        await until(pilot, lambda: "leaks: names Hogwarts" in screen_text(app))
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "Marked as a leak (names Hogwarts)" in notified(app))
        await pilot.press("f8")
        await until(pilot, lambda: "was not mended yet" in notified(app))  # this worker did nothing
        await pilot.press("f9")
        await until(pilot, lambda: "never mended" in notified(app))

    drive(flow, run=path)
    assert started == [["mend"]]


def test_an_answer_is_stopped_by_escape_and_typing_goes_on_meanwhile(workplace, tiny_model):
    path = tiny_chat(workplace, tiny_model, strong_adapter(tiny_model))

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        await until(pilot, lambda: "loading" not in text_of(app, "#chat-state"), 60)
        app.screen.query_one("#length").value = 512
        await write(pilot, "Go on")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.conversation.turns)
        await write(pilot, "abc")
        assert app.screen.query_one("#question").value == "abc"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen._answering is None, 60)

    drive(flow, run=path)


# Result


def test_no_cell_of_the_map_is_cut_off_where_there_are_many_forms(workplace):
    async def flow(pilot, app):
        app.open(next(entry for entry in app.entries if entry.path.name == "harry-potter"))
        await go_to(pilot, app, "result")
        for width in (80, 140):
            await pilot.resize_terminal(width, 300)
            await until(pilot, lambda: "in context" in screen_text(app) and "cross" in screen_text(app))
            assert "→…" not in screen_text(app) and "/…" not in screen_text(app)

    drive(flow)


def test_the_adapter_is_copied_where_mlx_lm_finds_it(workplace, tiny_model):
    path = tiny_chat(workplace, tiny_model, strong_adapter(tiny_model))

    async def flow(pilot, app):
        await go_to(pilot, app, "result")
        await pilot.press("e")
        await until(pilot, lambda: app.screen.query("Input"))
        app.screen.query_one("Input").value = str(workplace / "copy")
        await pilot.press("enter")
        await until(pilot, lambda: (workplace / "copy" / "adapters.safetensors").exists())

    drive(flow, run=path)
