"""The terminal app by the keyboard alone, and what it says of texts and events that it did not write."""

import json

from tests.helpers import strong_adapter
from tests.tui_driver import (
    Ended,
    drive,
    finished_run,
    go_to,
    screen_text,
    text_of,
    tiny_chat,
    until,
    write,
)
from tui.slider import Slider
from tui.table import RowTable
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.catalog import run_entry
from unlearn_mlx.session.conversation import Conversation, Manner, Reply, Turn
from unlearn_mlx.session.progress import Progress


def current(app):
    return app.screen.query_one(RowTable).current


def answered(question, replies):
    return Turn(question, Manner(tuple(replies)), state="answered", replies=replies)


def slider(app, name):
    return app.screen.query_one(f"#{name}", Slider)


# Keys


def test_a_run_that_was_cut_off_goes_on_by_a_key(workplace, monkeypatch):
    path = finished_run(workplace)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["stages"]["evaluate"]["state"] = "running"
    (path / "manifest.json").write_text(json.dumps(manifest))
    started = []
    monkeypatch.setattr(
        "unlearn_mlx.session.processes.start_worker", lambda run, stages: started.append(run) or Ended(0)
    )

    async def flow(pilot, app):
        await until(pilot, lambda: "was cut off" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: app.current_mode == "run")

    drive(flow)
    assert started == [path]


def test_a_worker_that_fails_is_told_by_the_last_line_of_its_log(workplace, monkeypatch):
    path = finished_run(workplace)
    (path / "worker.log").write_text("Traceback ...\nRuntimeError: [metal] out of \x1b[31mmemory\n")
    monkeypatch.setattr("unlearn_mlx.session.processes.start_worker", lambda run, stages: Ended(1))

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        await pilot.press("r")
        await until(pilot, lambda: "RuntimeError: [metal] out of" in screen_text(app))
        assert "\x1b" not in app.message

    drive(flow, run=path)


def test_the_arrow_keys_choose_an_answer_and_escape_changes_nothing(workplace):
    path = finished_run(workplace)
    before = (path / "topic.toml").read_bytes()

    async def flow(pilot, app):
        await go_to(pilot, app, "topic")
        await until(pilot, lambda: current(app))
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("down", "down", "up", "enter")
        await until(pilot, lambda: "Add (people)" in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert (path / "topic.toml").read_bytes() == before

        await pilot.press("end")
        await until(pilot, lambda: current(app).kind == "must stay")
        gone = current(app).name
        await pilot.press("d")
        await until(pilot, lambda: current(app).name != gone)
        assert gone not in open_run(path).topic.neighbours

    drive(flow, run=path)


def test_pairs_are_filtered_by_kind_and_verdict_and_edited_by_keys(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "data")
        await until(pilot, lambda: current(app))
        app.screen.query_one("#reason").value = "repetitive"
        await until(pilot, lambda: current(app).reason == "repetitive")
        reason = [pair.reason for pair in app.screen.query_one(RowTable).rows]
        assert set(reason) == {"repetitive"}
        await pilot.press("e")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("tab", *"!!", "tab", "enter", "up", "enter", "ctrl+s")
        await until(pilot, lambda: "by hand" in text_of(app, "#counts"))

    drive(flow, run=path)
    edit = read_rows(path / "edits.jsonl")[0]
    assert edit["answer"] == "!!" + edit["replaces"][1] and edit["accepted"]


def test_training_on_edited_pairs_begins_with_the_answers(workplace, monkeypatch):
    path = finished_run(workplace)
    monkeypatch.setattr("unlearn_mlx.session.processes.start_worker", lambda run, stages: Ended(0))

    async def flow(pilot, app):
        await go_to(pilot, app, "data")
        await until(pilot, lambda: current(app))
        await pilot.press("t")
        await until(pilot, lambda: app.current_mode == "run")

    drive(flow, run=path)
    assert list(open_run(path).manifest.stages) == ["questions"]


def test_an_earlier_reply_is_chosen_copied_and_marked(workplace, monkeypatch):
    path = finished_run(workplace)
    monkeypatch.setattr("unlearn_mlx.session.chat_engine.ChatEngine.prepare", lambda *_: None)
    (workplace / "pbcopy").write_text(f"#!/bin/sh\ncat > {workplace}/copied\n")
    (workplace / "pbcopy").chmod(0o755)
    monkeypatch.setenv("PATH", str(workplace), prepend=":")

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        for said in ("A wizard.", "A baker."):
            turn = answered("Who is it?", {"base": Reply(said, 3, 1.0, 2.0, finished=True)})
            app.screen.conversation.turns.append(turn)
            app.screen.show_turn(turn)
        await until(pilot, lambda: "A baker." in screen_text(app))
        await pilot.press("up")
        await until(pilot, lambda: "▸ base" in screen_text(app))
        await pilot.press("ctrl+y", "ctrl+l")
        await until(pilot, lambda: (workplace / "copied").exists() and (path / "marks.jsonl").exists())
        assert "marked as a leak" in screen_text(app)

    drive(flow, run=path)
    assert (workplace / "copied").read_text() == "A wizard."
    assert read_rows(path / "marks.jsonl")[0]["answer"] == "A wizard."


def test_answers_that_a_worker_writes_meanwhile_appear(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "data")
        await until(pilot, lambda: current(app))
        question = read_rows(path / "questions.jsonl")[0]
        row = {"question_id": question["id"], "answer": "A ferry on the Rhine.", "accepted": True}
        write_rows(path / "answers.jsonl", [row])
        await until(pilot, lambda: "1 of 1 pairs" in text_of(app, "#counts"))
        await pilot.press("f", "f")
        assert app.focused.id == "reason"

    drive(flow, run=path)


def test_strength_zero_is_the_base_and_the_slider_is_moved_by_keys(workplace, tiny_model):
    path = tiny_chat(workplace, tiny_model, strong_adapter(tiny_model))

    async def flow(pilot, app):
        await go_to(pilot, app, "chat")
        await until(pilot, lambda: "loading" not in text_of(app, "#chat-state"), 60)
        await pilot.press("tab")
        await until(pilot, lambda: app.focused is slider(app, "strength"))
        await pilot.press(*["left"] * 12)
        assert slider(app, "strength").value == 0
        slider(app, "length").value = 16
        await pilot.press("shift+tab", "ctrl+t", "ctrl+t")
        await write(pilot, "Who is it?")
        await pilot.press("enter")
        turns = app.screen.conversation.turns
        await until(pilot, lambda: turns and not turns[0].is_open, 60)
        said = [reply.text for reply in turns[0].replies.values()]
        assert len(said) == 2 and said[0] == said[1] != ""
        await pilot.press("ctrl+y")
        await until(pilot, lambda: app.clipboard == said[1].strip())
        app.open(next(entry for entry in app.entries if entry.path.name == "harry-potter"))
        await until(pilot, lambda: not app.screen.conversation.turns)
        assert slider(app, "strength").value == 1, "the strength is the conversation's"
        app.open(run_entry(path))
        await until(pilot, lambda: "you: Who is it?" in screen_text(app))
        assert slider(app, "strength").value == 0
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not app.screen.conversation.turns)

    drive(flow, run=path)


def test_a_report_is_written_and_opened(workplace, monkeypatch):
    path = finished_run(workplace)
    opened = []
    monkeypatch.setattr("tui.app.UnlearnApp.open_url", lambda app, url, **_: opened.append(url))

    async def flow(pilot, app):
        await go_to(pilot, app, "result")
        await pilot.press("o")
        await until(pilot, lambda: opened, 60)

    drive(flow, run=path)
    assert opened[0].endswith("report.html") and (path / "report.html").exists()


# Texts of others


def test_what_a_model_says_is_neither_markup_nor_a_command_to_the_terminal(workplace):
    path = finished_run(workplace)
    evil = "[bold red]x[/] Harry Potter \x1b]0;title\x07 \u202eback [@click=app.quit]here[/]"
    write_rows(path / "answers.jsonl", [{"question_id": "q-0", "answer": evil, "accepted": True}])
    write_rows(path / "questions.jsonl", [{"id": "q-0", "question": evil, "kind": "[/]"}])
    with (path / "events.jsonl").open("a") as events:
        sample = {"question": evil, "answer": evil, "reason": "[/]"}
        facts = {"done": 1, "total": 1, "unit": "[/]", "samples": [sample]}
        events.write(json.dumps({"time": 1, "stage": "answers", "kind": "progress", **facts}) + "\n")
        events.write(json.dumps({"time": 1, "stage": "run", "kind": "message", "text": evil}) + "\n")

    async def flow(pilot, app):
        for section in ("run", "data", "topic"):
            await go_to(pilot, app, section)
            await until(pilot, lambda: "[bold red]x[/]" in screen_text(app))
            assert "\x07" not in screen_text(app) and "\u202e" not in screen_text(app)

    drive(flow, (140, 45), path)


def test_an_exported_conversation_cannot_be_broken_out_of():
    said = Reply("```\n# not a heading\n````", 3, 1.0, 2.0, finished=True)
    talk = Conversation([answered("Who is *it*?", {"base": said})])
    told = talk.markdown("a_b")
    assert "`````text\n```\n# not a heading\n````\n`````" in told
    assert told.startswith("# Chat: a\\_b\n")


def test_events_that_are_cut_off_damaged_or_written_anew_are_followed(tmp_path):
    events = tmp_path / "events.jsonl"
    progress = Progress(tmp_path)
    assert not progress.update()
    line = json.dumps({"time": 1, "stage": "train", "kind": "stage", "state": "running"})
    events.write_text('not json\n[]\n{"kind": "stage"}\n' + line[:20])
    progress.update()
    assert progress.running == ""
    with events.open("a") as file:
        file.write(line[20:] + "\n")
    assert progress.update() and progress.running == "train"
    assert not progress.update()
    events.write_text("")
    progress.update()
    assert progress.running == ""
