"""The run screen while a worker writes: how far it is, what streams by, and what a stage has made."""

import json
import time

import pytest

from tests.helpers import QUESTIONS, chat_prompt
from tests.tui_driver import drive, finished_run, go_to, screen_text, text_of, until
from tui.plots import step_ticks
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.session.create import new_run


def event(**facts):
    return json.dumps({"time": time.time(), "stage": "questions", "kind": "progress", **facts}) + "\n"


def test_rejects_stream_by_with_their_reason_and_plots_leave_their_room_until_training(
    workplace, monkeypatch
):
    monkeypatch.setattr("unlearn_mlx.session.processes.Workers.is_working", lambda *_: True)
    path = finished_run(workplace)
    (path / "events.jsonl").write_text("")
    rejected = "Who who who is the one that nobody ever " + "has seen or " * 12 + "met?"

    def say(**facts):
        with (path / "events.jsonl").open("a") as events:
            events.write(event(**facts))

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        say(kind="stage", state="running")
        topic = {"total": 90, "unit": "topic questions"}
        say(done=0, **topic)
        say(done=3, drafted=8, drafts=77, **topic)
        await until(pilot, lambda: "3/90 topic questions · 8/77 drafts" in text_of(app, "#stages"))
        samples = [{"question": rejected, "reason": "repetitive"}, {"question": "Who is it?", "reason": ""}]
        say(done=90, samples=samples, **topic)
        say(done=70, total=70, unit="neighbour questions")
        say(kind="stage", state="done")
        await until(pilot, lambda: "160 questions, 90 on the topic" in text_of(app, "#stages"))
        told = " ".join(part.strip("│ ") for part in screen_text(app).splitlines())
        assert f"✗ repetitive: {rejected}" in told and "? Who is it?" in told
        assert app.screen.query_one("#samples").size.width > 120 and "nats" not in told
        say(stage="train", kind="stage", state="running")
        say(stage="train", done=5, total=60, unit="steps", forget_loss=2.0, retain_kl=0.0)
        await until(pilot, lambda: "2.00 loss, nats a token" in screen_text(app))
        assert app.screen.query_one("#samples").size.width < 100

    drive(flow, (140, 45), path)


def test_zero_is_drawn_beside_its_number(workplace):
    path = finished_run(workplace)

    async def flow(pilot, app):
        await go_to(pilot, app, "run")
        await pilot.press("v")
        await until(pilot, lambda: "●" in screen_text(app))
        (line,) = [line for line in screen_text(app).splitlines() if "●" in line]
        assert line.rpartition("●")[0].rpartition("┫")[0].endswith(" 0.0 ")

    drive(flow, (80, 24), path)


@pytest.mark.parametrize(
    ("last", "width", "ticks"),
    [(110, 18, [0, 55, 110]), (12_345, 18, [0, 12_345]), (12_345, 10, [0]), (1, 18, [0, 1])],
)
def test_ticks_that_would_collide_are_left_out(last, width, ticks):
    assert step_ticks(last, width) == ticks


def test_how_many_are_answered_is_told_between_tokens(tiny_model):
    requests = [
        Request(str(number), tuple(chat_prompt(tiny_model, text)), 4 + 4 * (number % 5))
        for number, text in enumerate(QUESTIONS * 2)
    ]
    told = []
    generate(tiny_model, requests, 0, told=told.append)
    assert told == sorted(told) and len(set(told)) > 3 and max(told) <= len(requests)


def test_a_round_of_questions_tells_how_far_it_is(workplace, tiny_folder, monkeypatch):
    monkeypatch.setattr("unlearn_mlx.runs.run.TELL_EVERY", 0.0)
    run = new_run("Harry Potter", str(tiny_folder), "quick", {"rounds": 1}).make()
    with pytest.raises(UserError, match="could be used"):  # random weights write no questions
        run_stages(run, ["questions"])
    progress = [event for event in run.events() if event.kind == "progress"]
    drafted = [event.drafted for event in progress if event.drafts]
    assert len(set(drafted)) > 2 and all(event.drafted <= event.drafts for event in progress if event.drafts)
    samples = [sample for event in progress for sample in event.samples]
    assert samples and all(sample.reason for sample in samples)
