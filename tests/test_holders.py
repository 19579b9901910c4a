"""One model at a time: a run asks the chat for its memory, and the chat has it back afterwards."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.helpers import QUESTIONS, run_with_dataset
from unlearn_mlx import pipeline
from unlearn_mlx.compute import holders
from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.errors import Cancelled, EnvironmentCannot
from unlearn_mlx.inference import loading
from unlearn_mlx.inference.asking import context_of
from unlearn_mlx.inference.engine import Engine


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))


@contextmanager
def another_process():
    """A process that does nothing, with its facts as it would write them."""
    script = "import time, sys; print(); sys.stdout.flush(); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child.stdout.readline()
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def said(engine):
    answering = engine.answer({"base": context_of([], QUESTIONS[0])}, max_tokens=5)
    return "".join(piece.text for piece in answering)


def chats():
    return [holder for holder in holders.holders() if holder.gives_up]


def test_what_others_hold_is_not_free_and_the_dead_hold_nothing(monkeypatch):
    monkeypatch.setattr(holders, "free_bytes", lambda: 2**60)
    room = holders.room_now()
    with holders.holding(GIGABYTE):
        assert holders.room_now() == room - GIGABYTE
        assert [holder.process for holder in holders.holders()] == [os.getpid()]
    with another_process() as child, monkeypatch.context() as patch:
        facts = {"process": child.pid, "began": holders.psutil.Process(child.pid).create_time()}
        patch.setattr(holders, "_this_process", lambda: facts)
        left = holders.hold(GIGABYTE, True)
        assert holders.room_now() == room - GIGABYTE
    assert holders.room_now() == room and not left.path.exists()


def test_a_chat_gives_its_model_up_to_a_run_and_has_it_back_afterwards(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder, epochs=1)
    engine = Engine(str(tiny_folder), None)
    assert engine.wait_until_ready()
    before = said(engine)
    held = []

    def work(*_):
        held.append([chats(), engine.wait_until_ready(timeout=0)])
        with pytest.raises(EnvironmentCannot, match="a run has this model's memory meanwhile"):
            said(engine)

    # There is room for one of them.
    monkeypatch.setattr(holders, "room_now", lambda: 0 if chats() else 2**60)
    monkeypatch.setattr(pipeline, "_work_off", work)
    pipeline.run_stages(run, ["train"])
    assert held == [[[], False]]
    assert any("a chat is asked" in getattr(event, "text", "") for event in run.events())
    until(lambda: engine.wait_until_ready(timeout=0))
    assert said(engine) == before and len(chats()) == 1
    engine.close()
    assert not chats()


def test_where_both_fit_the_chat_keeps_its_model(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder)
    engine = Engine(str(tiny_folder), None)
    engine.wait_until_ready()
    monkeypatch.setattr(pipeline, "_work_off", lambda *_: said(engine))
    pipeline.run_stages(run, ["train"])
    assert not any("asked" in getattr(event, "text", "") for event in run.events())
    engine.close()


def test_who_waits_for_room_can_be_stopped(monkeypatch):
    holders.hold(GIGABYTE, True)  # a chat that never answers
    monkeypatch.setattr(holders, "free_bytes", lambda: 0)
    stop = threading.Event()
    with pytest.raises(Cancelled):
        holders.make_room(1, lambda text: stop.set(), stop.is_set)


def test_a_chat_that_does_not_fit_is_refused_before_it_is_loaded(tiny_folder, monkeypatch):
    monkeypatch.setattr(holders, "free_bytes", lambda: GIGABYTE // 4)
    monkeypatch.setattr(loading, "open_folder", lambda *_: pytest.fail("loaded"))
    engine = Engine(str(tiny_folder), None)
    with pytest.raises(EnvironmentCannot, match="0.2 GB are free: close other programs"):
        engine.wait_until_ready()
    assert not holders.holders()
