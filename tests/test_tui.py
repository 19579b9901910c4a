"""The terminal app, as somebody uses it: under a pilot, on recorded events and on the real engine."""

import json
import threading
import time

import psutil

from tests.helpers import strong_adapter
from tests.tui_driver import (
    Ended,
    children,
    drive,
    finished_run,
    go_to,
    screen_text,
    text_of,
    tiny_chat,
    tiny_run,
    until,
    write,
)
from tui.new_run import OWN
from tui.table import RowTable
from tui.turn_view import TurnView
from unlearn_mlx.runs import open_run


def current(app):
    return app.screen.query_one(RowTable).current


def notified(app):
    return "\n".join(note.message for note in app._notifications)


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
            await pilot.press("f12")
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


# A new run


def test_a_new_run_is_made_with_its_settings_and_begins(workplace, tiny_folder):
    async def flow(pilot, app):
        await pilot.press("n")
        await until(pilot, lambda: app.screen.query("#topic"))
        await until(pilot, lambda: app.screen.query_one("#model").value is not None)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "empty" in text_of(app, "#complaint"))
        await write(pilot, "Cheese")
        app.screen.query_one("#model").value = "another: a hub id or a folder"
        app.screen.query_one("#own-model").value = str(tiny_folder)
        app.screen.query_one("#set-questions").value = "8"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.current_mode == "run")
        # The tiny model's questions are noise: the worker says so, and the app names cause and way out.
        await until(pilot, lambda: app.message, 60)
        await until(pilot, lambda: "r goes on" in screen_text(app))
        assert "questions" in app.message

    drive(flow)
    assert open_run(workplace / "runs" / "cheese").settings.questions == 8
    assert not children()


# Run


def test_recorded_events_are_shown_as_stages_samples_plots_and_log(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        await until(pilot, lambda: "validation at step" in screen_text(app))
        shown = screen_text(app)
        assert "✓ Training" in shown and "loss, nats a token: " in shown and "✗" in shown
        await pilot.press("slash")
        await write(pilot, "validation")
        await until(pilot, lambda: "Evaluation done" not in screen_text(app))
        assert "validation at step" in screen_text(app)
        await pilot.press("escape", "s")
        await until(pilot, lambda: list(path.glob("log-*.txt")))
        await pilot.resize_terminal(80, 24)
        samples = app.screen.query_one("#samples")
        await pilot.press("v")
        await until(pilot, lambda: samples.size.width > 60)
        assert samples.virtual_size.width <= samples.size.width  # no line is cut off

    drive(flow, (140, 45), path)
    assert "validation at step" in next(path.glob("log-*.txt")).read_text()


def test_a_worker_is_paused_stopped_and_resumed_and_the_run_ends_done(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=30.0, samples=0)

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        app.start(["train"])
        await until(pilot, lambda: app.following.loss, 60)
        await pilot.press("p")
        await until(pilot, lambda: "paused" in screen_text(app))
        await pilot.press("p")
        await until(pilot, lambda: "at work" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: "Stopped" in app.message, 60)
        assert open_run(path).manifest["stages"]["train"]["state"] == "cancelled"
        app.start(["train"])
        await until(pilot, lambda: app.message == "Done.", 120)

    drive(flow, run=path)
    texts = [event.get("text", "") for event in open_run(path).events()]
    assert any("from step" in text and "from step 0" not in text for text in texts)
    assert not children()


def test_a_worker_that_is_killed_becomes_a_message_with_the_cause_and_a_resume(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_rows=1)

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        app.start(["train"])
        await until(pilot, lambda: app.following.loss, 60)
        children()[0].kill()
        await until(pilot, lambda: "killed by signal 9" in app.message)
        await until(pilot, lambda: "out of memory" in screen_text(app) and "r goes on" in screen_text(app))
        await pilot.press("r")
        await until(pilot, lambda: "at work" in screen_text(app))
        await pilot.press("x", "x")
        await until(pilot, lambda: app.message, 30)
        assert "killed" not in app.message and "Stopped" in app.message

    drive(flow, run=path)


def test_the_death_of_a_worker_is_told_while_another_run_is_open(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_rows=1)
    finished_run(workplace)

    async def flow(pilot, app):
        working = app.entry
        app.start(["train"])
        await until(pilot, lambda: app.following.loss, 60)
        app.open(next(entry for entry in app.entries if entry.path.name == "harry-potter"))
        children()[0].kill()
        await until(pilot, lambda: "Harry Potter · tiny: The worker was killed by signal 9" in notified(app))
        assert not app.message
        app.open(working)
        await go_to(pilot, app, "run")
        await until(
            pilot, lambda: "killed by signal 9" in screen_text(app) and "r goes on" in screen_text(app)
        )

    drive(flow, run=path)


def test_what_ended_a_worker_is_told_after_the_app_was_opened_anew(workplace):
    path = finished_run(workplace)
    with (path / "events.jsonl").open("a") as events:
        event = {"time": time.time(), "stage": "train", "kind": "stage", "state": "running"}
        events.write(json.dumps(event) + "\n")
    (path / "worker.log").write_text("[METAL] Command buffer execution failed: Insufficient Memory\n")

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        await until(pilot, lambda: "cut off in training: [METAL]" in screen_text(app))
        assert "r goes on" in screen_text(app)

    drive(flow, (140, 45), path)


def test_quitting_while_a_run_works_asks_and_what_goes_on_is_found_again(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_rows=1)

    async def leave(pilot, app):
        await go_to(pilot, app, "run")
        app.start(["train"])
        await until(pilot, lambda: app.following.loss, 60)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: "What becomes of it?" in screen_text(app))
        await pilot.click("#go_on")
        await until(pilot, lambda: not app.is_running)

    drive(leave, run=path)
    worker = children()[0]

    async def come_back(pilot, app):
        await go_to(pilot, app, "run")
        await until(pilot, lambda: app.is_working(app.entry.path))
        app.stop()
        await until(pilot, lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 60)

    drive(come_back, run=path)
    assert open_run(path).manifest["stages"]["train"]["state"] == "cancelled"


# Fetching a model


def fetching_run(hub, workplace, tiny_folder, monkeypatch):
    """A hub with the tiny model, for this process and for those that it starts."""
    hub.add_model("owner/tiny", {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    for name, value in hub.environment(workplace / "hub").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "hub" / "hub"))


async def ask_for_a_hub_model(pilot, app):
    await pilot.press("n")
    await until(pilot, lambda: app.screen.query("#topic"))
    await until(pilot, lambda: app.screen.query_one("#model").value is not None)
    await write(pilot, "Cheese")
    app.screen.query_one("#model").value = OWN
    app.screen.query_one("#own-model").value = "owner/tiny"
    await pilot.press("ctrl+s")


def test_a_model_is_fetched_with_its_progress_before_the_run_begins(
    on_hub, workplace, tiny_folder, monkeypatch
):
    fetching_run(on_hub, workplace, tiny_folder, monkeypatch)
    monkeypatch.setattr("tui.working.start_child", lambda run, stages: Ended(0))
    on_hub.held = threading.Event()

    async def flow(pilot, app):
        await ask_for_a_hub_model(pilot, app)
        await until(pilot, lambda: "Fetching owner/tiny: 0.0 GB" in text_of(app, "#complaint"), 60)
        on_hub.held.set()
        await until(pilot, lambda: app.current_mode == "run", 60)

    drive(flow)
    assert open_run(workplace / "runs" / "cheese").model_name == "owner/tiny"


def test_quitting_while_a_model_is_fetched_ends_the_fetching(on_hub, workplace, tiny_folder, monkeypatch):
    fetching_run(on_hub, workplace, tiny_folder, monkeypatch)
    on_hub.held = threading.Event()

    async def flow(pilot, app):
        await ask_for_a_hub_model(pilot, app)
        await until(pilot, lambda: any("tiny" in request for request in on_hub.requests), 60)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)

    drive(flow)
    on_hub.held.set()
    # Killed at once, but the system may take a moment to say so.
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert not alive
    assert not (workplace / "runs").exists()


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
        await until(pilot, lambda: (path / "marked.jsonl").exists())
        await pilot.press("ctrl+s")
        await until(pilot, lambda: list((path / "chats").glob("*.md")))

    drive(flow, run=path)
    assert "Who is Harry Potter?" in next((path / "chats").glob("*.md")).read_text()


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


def test_quitting_can_stop_the_worker_and_leaves_none(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_rows=1)

    async def flow(pilot, app):
        app.start(["train"])
        await until(pilot, lambda: app.following.loss, 60)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: "What becomes of it?" in screen_text(app))
        await pilot.click("#stop")
        await until(pilot, lambda: not app.is_running, 60)

    drive(flow, run=path)
    assert not children()
    assert open_run(path).manifest["stages"]["train"]["state"] == "cancelled"
