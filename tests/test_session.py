"""What the faces share: the catalog, new runs' directories, progress, the end of workers, conversations."""

import json
import threading
import time

import pytest

from tests.helpers import WIZARD
from unlearn_mlx.cli.main import main
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.asking import Answering, Piece
from unlearn_mlx.runs.run import create_run, free_path, save_topic
from unlearn_mlx.session import chat_engine
from unlearn_mlx.session.catalog import run_entries, shipped_entries
from unlearn_mlx.session.chat_engine import ChatEngine
from unlearn_mlx.session.conversation import Conversation, Manner, Reply, Turn, leak_in, leak_pieces
from unlearn_mlx.session.create import new_run
from unlearn_mlx.session.endings import ending_of
from unlearn_mlx.session.progress import Progress

MODEL = {"name": "smollm2", "revision": "1", "sha256": "abc"}


def made(path):
    return create_run(path, WIZARD, MODEL, make_settings("quick"), "cpu")


def changed(path, **values):
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def runs(workplace):
    """The directory of the runs, with a good one in it and one a folder further down."""
    made(workplace / "runs" / "good")
    made(workplace / "runs" / "many" / "nested")
    return workplace / "runs"


# Catalog


def test_nested_runs_are_found_and_what_is_no_run_is_passed_over(runs):
    (runs / "._x").write_bytes(b"\0")
    (runs / "notes").mkdir()
    (runs / ".half").mkdir()
    (runs / ".half" / "manifest.json").write_text("{")
    assert [entry.key for entry in run_entries()] == ["runs/good", "runs/many/nested"]


@pytest.mark.parametrize(
    "values",
    [
        {"stages": []},
        {"stages": {"questions": "done"}},
        {"model": "smollm2"},
        {"model": None},
        {"format": "one"},
        {"format": 99},
    ],
)
def test_a_damaged_manifest_hides_no_other_run_and_says_what_is_wrong(runs, capsys, values):
    changed(made(runs / "bad").path, **values)
    by_name = {entry.path.name: entry for entry in run_entries()}
    assert set(by_name) == {"good", "nested", "bad"}
    assert by_name["bad"].error and "\n" not in by_name["bad"].error
    assert by_name["bad"].state(False) == "damaged"
    assert main(["runs"]) == 0
    assert f"damaged: {by_name['bad'].error}" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["runs/bad"]["error"] == by_name["bad"].error
    assert rows["runs/good"] == {
        "path": "runs/good",
        "topic": "Harry Potter",
        "model": "smollm2",
        "done": [],
    }


def test_a_damaged_topic_file_is_told_of(runs):
    (runs / "good" / "topic.toml").write_text('name = "Harry')
    (entry,) = [entry for entry in run_entries() if entry.error]
    assert "topic.toml" in entry.error and entry.run is not None


def test_every_shipped_adapter_has_all_that_the_faces_show(workplace):
    entries = shipped_entries()
    assert {entry.path.name for entry in entries} >= {"harry-potter", "les-miserables", "chewing-gum"}
    for entry in entries:
        assert entry.is_shipped and entry.adapter == entry.path and entry.state(False) == "shipped"
        assert entry.before is not None and entry.after is not None and entry.after < entry.before
        assert entry.evaluation() and entry.probes() and entry.topic.name == entry.topic_name


# New runs


def test_a_new_run_takes_the_usual_directory_or_the_first_free_number(runs, workplace):
    assert free_path("Harry Potter").as_posix() == "runs/harry-potter"
    made(runs / "harry-potter")
    (runs / "harry-potter-2").mkdir()
    (runs / "harry-potter-2" / "notes.txt").write_text("mine")
    assert free_path("harry potter").as_posix() == "runs/harry-potter-3"
    assert free_path("Harry Potter", {free_path("Harry Potter")}).as_posix() == "runs/harry-potter-4"
    with pytest.raises(UserError, match="looks like a path"):
        free_path("../etc")


def test_a_topic_file_that_was_prepared_counts_and_that_of_another_topic_is_refused(workplace):
    save_topic(workplace / "runs" / "mine" / "topic.toml", WIZARD)
    out = workplace / "runs" / "mine"
    assert new_run("Harry Potter", "smollm2", "quick", {}, out).topic.names == WIZARD.names
    with pytest.raises(UserError, match="belongs to the topic 'Harry Potter'"):
        new_run("Volcanoes", "smollm2", "quick", {}, out)


# Progress


def events_in(folder, *events):
    with (folder / "events.jsonl").open("a") as file:
        for event in events:
            file.write(json.dumps({"time": 1.0, "stage": "train", **event}) + "\n")


def step(number, **losses):
    return {"kind": "progress", "done": number, "total": 9, "unit": "steps", "time": float(number), **losses}


def test_the_old_name_of_negative_preference_is_read(tmp_path):
    events_in(tmp_path, step(1, forget_loss=2.0, retain_kl=0.1, avoidance=0.5))
    events_in(tmp_path, step(2, forget_loss=1.0, retain_kl=0.1, negative_preference=0.25))
    progress = Progress(tmp_path)
    assert progress.update()
    assert progress.negative_preference == [(1, 0.5), (2, 0.25)]
    assert progress.loss == [(1, 2.0), (2, 1.0)]


def test_a_stage_is_known_by_its_parts_its_rate_and_what_it_made_last(tmp_path):
    events_in(
        tmp_path,
        {"kind": "stage", "state": "running", "stage": "answers"},
        {"kind": "message", "text": "loading", "stage": "answers"},
        {**step(2), "unit": "questions", "stage": "answers", "samples": ["What?"]},
        {**step(4), "unit": "questions", "stage": "answers", "samples": []},
        {
            **step(3),
            "stage": "answers",
            "unit": "answers",
            "samples": [{"question": "Who?", "answer": "A baker.", "reason": "short"}],
        },
    )
    progress = Progress(tmp_path)
    progress.update()
    stage = progress.stages["answers"]
    assert progress.running == "answers" and stage.message == "loading"
    assert stage.counts == {"questions": (4, 9), "answers": (3, 9)}
    assert [(sample.question, sample.reason) for sample in stage.samples] == [("Who?", "short")]
    assert progress.samples_seen == 2


def test_what_an_earlier_attempt_wrote_is_left_out_where_only_news_count(tmp_path):
    events_in(tmp_path, {"kind": "message", "text": "old"})
    progress = Progress(tmp_path, only_new=True)
    events_in(tmp_path, {"kind": "message", "text": "new"})
    assert [event.text for event in progress.news()] == ["new"]
    assert progress.news() == []


@pytest.mark.parametrize(
    ("code", "was_stopped", "said"),
    [
        (0, False, "Done."),
        (130, False, "Stopped; what was finished is kept."),
        (-9, True, "Stopped; what was finished is kept."),
        (-6, False, "The worker was killed by signal 6: Illegal something"),
        (1, False, "The worker failed with code 1: Illegal something"),
    ],
)
def test_how_a_worker_ended_is_told_with_its_last_words(tmp_path, code, was_stopped, said):
    (tmp_path / "worker.log").write_text("Traceback\nIllegal something\n")
    ending = ending_of(tmp_path, code, was_stopped)
    assert ending.text == said
    assert ending.is_bad == said.startswith("The worker")


# Conversations


def said(conversation, question, **texts):
    turn = Turn(question, Manner(tuple(texts)))
    conversation.turns.append(turn)
    for mode, text in texts.items():
        turn.take(Piece(mode, text))
        turn.take(Piece(mode, "", finished=True))
    turn.state = "answered"
    return turn


def test_toggling_keeps_the_thread_and_each_mode_its_own_answers():
    conversation = Conversation()
    said(conversation, "Who?", base="A wizard.", adapter="A baker.")
    said(conversation, "Where?", base="At Hogwarts.")
    said(conversation, "When?", adapter="On Monday.")
    said(conversation, "How?", adapter=" ")  # which nobody answered
    turn = Turn("Why?", Manner(("base", "adapter")))
    told = {mode: conversation.told(mode, turn) for mode in ("base", "adapter")}
    assert [message["content"] for message in told["base"]] == [
        *("Who?", "A wizard.", "Where?", "At Hogwarts.", "When?", "On Monday.", "Why?")
    ]
    assert [message["content"] for message in told["adapter"]] == [
        *("Who?", "A baker.", "Where?", "At Hogwarts.", "When?", "On Monday.", "Why?")
    ]
    assert [message["role"] for message in told["base"]] == [*("user", "assistant") * 3, "user"]


def test_an_earlier_turn_is_told_what_came_before_it_alone():
    conversation = Conversation()
    first = said(conversation, "Who?", adapter="A baker.")
    second = said(conversation, "Where?", adapter="At sea.")
    assert len(conversation.told("base", first)) == 1
    assert len(conversation.told("base", second)) == 3


def test_an_answer_that_did_not_end_by_itself_says_how_it_ended():
    turn = Turn("Who?", Manner(("adapter",), strength=0.5))
    assert turn.heading("adapter") == "adapter · strength 0.5 · ..."
    turn.take(Piece("adapter", "He"))
    for state, end in (("answered", "cut at its length"), ("stopped", "stopped"), ("no memory", "failed")):
        turn.state = state
        assert turn.heading("adapter") == f"adapter · strength 0.5 · {end}"
    turn.take(Piece("adapter", "", finished=True))
    assert turn.heading("adapter") == "adapter · strength 0.5"


def test_a_heading_tells_how_soon_and_how_fast_an_answer_came_and_what_was_read_before():
    turn = Turn("Who?", Manner(("base",)), state="answering", began=10.0, answering=Answering())
    turn.answering.read_prompt(1024, 3000)
    assert turn.reading() == "reading: 1,024 of 3,000 tokens"
    assert turn.heading("base") == "base · reading: 1,024 of 3,000 tokens · ..."
    turn.replies["base"] = Reply("He is", 11, 10.25, 12.25)
    assert turn.reading() == ""
    assert turn.heading("base") == "base · first token after 0.25 s · 5.0 tokens/s · ..."


def test_leak_filter_are_the_names_that_the_question_did_not_say():
    answer = "Harry Potter met Hermione in Hogwarts. Hermione\x07 stayed."
    leak = leak_in(WIZARD, "Who is Harry Potter?", answer)
    pieces = leak_pieces(answer, leak)
    assert "".join(text for text, _ in pieces) == answer.replace("\x07", " ")
    assert leak.reason == "names Hermione, Hogwarts"
    assert leak_in(None, "", answer) is None


def test_what_the_user_said_in_an_earlier_question_is_no_leak():
    conversation = Conversation(topic=WIZARD)
    said(conversation, "What is Hogwarts?", adapter="A ferry.")
    turn = said(conversation, "And who lives there?", adapter="Hermione lives in Hogwarts.")
    leak = leak_in(WIZARD, conversation.asked(turn), "Hermione lives in Hogwarts.")
    assert leak.reason == "names Hermione"
    assert "leaks: names Hermione" in conversation.markdown("Harry Potter")


# The chat's engine


class SlowEngine:
    """Counts how many live at once; it takes a moment to begin and to end."""

    living = most = begun = 0

    def __init__(self, model_name, adapter):
        time.sleep(0.02)
        SlowEngine.living += 1
        SlowEngine.begun += 1
        SlowEngine.most = max(SlowEngine.most, SlowEngine.living)

    def wait_until_ready(self, timeout=None):
        return True

    def close(self, at_once=False):
        time.sleep(0.02)
        SlowEngine.living -= 1


def test_callers_at_the_same_time_start_one_engine_and_two_models_never_share_the_memory(monkeypatch):
    monkeypatch.setattr(chat_engine, "Engine", SlowEngine)
    held = ChatEngine()
    with pytest.raises(UserError, match="ask again"):
        _ = held.engine
    threads = [threading.Thread(target=held.prepare, args=("one",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SlowEngine.begun == 1 and held.is_ready()
    threads = [threading.Thread(target=held.prepare, args=(str(number % 2),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SlowEngine.most == 1 and SlowEngine.living == 1
    held.close()
    assert SlowEngine.living == 0 and held.model_name == ""


def test_a_guardrail_that_there_is_not_is_refused_before_any_work(workplace):
    with pytest.raises(UserError, match="no guardrail 'x': use auto, "):
        new_run("Mr X", "smollm2", "quick", {"guardrail": "x"}, workplace / "run")
    assert not (workplace / "run").exists()
    assert new_run("Mr X", "smollm2", "quick", {"guardrail": "auto"}).settings.guardrail == "auto"
