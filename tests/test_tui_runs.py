"""The terminal app's runs: new ones, workers that come and go, and models that are fetched."""

import json
import threading
import time

import psutil

from tests.tui_driver import (
    Ended,
    children,
    drive,
    finished_run,
    go_to,
    notified,
    screen_text,
    text_of,
    tiny_run,
    until,
    write,
)
from tui.new_run import OWN
from unlearn_mlx.runs.run import open_run


async def begin_training(pilot, app):
    app.start(["train"])
    await until(pilot, lambda: app.progress.loss, 60)


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
        await until(pilot, lambda: app.message, 180)
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
        assert "✓ Training" in shown and "loss, nats a token" in shown and "✗" in shown
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
        await begin_training(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: "paused" in screen_text(app))
        await pilot.press("p")
        await until(pilot, lambda: "at work" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: "Stopped" in app.message, 60)
        assert open_run(path).state_of("train") == "cancelled"
        app.start(["train"])
        await until(pilot, lambda: app.message == "Done.", 120)

    drive(flow, run=path)
    texts = [getattr(event, "text", "") for event in open_run(path).events()]
    assert any("from step" in text and "from step 0" not in text for text in texts)
    assert not children()


def test_a_worker_that_is_killed_becomes_a_message_with_the_cause_and_a_resume(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_size=1)

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        await begin_training(pilot, app)
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
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_size=1)
    finished_run(workplace)

    async def flow(pilot, app):
        working = app.entry
        await begin_training(pilot, app)
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
        await until(pilot, lambda: "cut off in training: the GPU's memory is full" in screen_text(app))
        assert "r goes on" in screen_text(app)

    drive(flow, (140, 45), path)


def test_quitting_while_a_run_works_asks_and_what_goes_on_is_found_again(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_size=1)

    async def leave(pilot, app):
        await go_to(pilot, app, "run")
        await begin_training(pilot, app)
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
    assert open_run(path).state_of("train") == "cancelled"


def test_quitting_can_stop_the_worker_and_leaves_none(workplace, tiny_folder):
    path = tiny_run(workplace, tiny_folder, epochs=100.0, batch_size=1)

    async def flow(pilot, app):
        await begin_training(pilot, app)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: "What becomes of it?" in screen_text(app))
        await pilot.click("#stop")
        await until(pilot, lambda: not app.is_running, 60)

    drive(flow, run=path)
    assert not children()
    assert open_run(path).state_of("train") == "cancelled"


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
    monkeypatch.setattr("unlearn_mlx.session.processes.start_worker", lambda run, stages: Ended(0))
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
