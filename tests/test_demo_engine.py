"""One engine for many askers: each gets its own answer whole, in its turn and in its mode."""

import threading
import time

import pytest

from tests.helpers import QUESTIONS, strong_adapter
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.asking import context_of
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model

MODES = [("base",), ("adapter",), ("base", "adapter")]


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("adapter")
        strong_adapter(load_model(resolve_model(str(tiny_folder))), seed=seed).save(folder)
        folders.append(folder)
    return folders


@pytest.fixture
def engine(tiny_folder, adapters):
    engine = Engine(str(tiny_folder), adapters[0])
    engine.wait_until_ready()
    yield engine
    engine.close()


def said(engine, question, modes, **options):
    texts = dict.fromkeys(modes, "")
    conversations = {mode: context_of([], question) for mode in modes}
    for piece in engine.answer(conversations, **{"max_tokens": 12, **options}):
        texts[piece.mode] += piece.text
    return texts


def test_twenty_questions_from_four_tabs_are_each_answered_whole_and_in_their_mode(engine):
    alone = {
        (question, mode): said(engine, question, [mode])[mode]
        for question in QUESTIONS[:5]
        for mode in ("base", "adapter")
    }
    assert all(alone[question, "base"] != alone[question, "adapter"] for question in QUESTIONS[:5])
    heard = {}

    def tab(number):
        for turn, question in enumerate(QUESTIONS[:5]):
            modes = MODES[(number + turn) % 3]
            heard[number, question] = said(engine, question, modes, asker=f"tab {number}")

    threads = [threading.Thread(target=tab, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 20
    for (_, question), texts in heard.items():
        assert texts == {mode: alone[question, mode] for mode in texts}


def test_a_short_question_is_answered_while_a_long_answer_is_under_way(engine):
    long = engine.answer({"base": context_of([], QUESTIONS[0])}, max_tokens=4000, asker="first")
    assert long.read(timeout=30)
    assert said(engine, QUESTIONS[1], ["base", "adapter"], max_tokens=2, asker="second")
    assert not long.ended
    long.cancel()
    assert list(long) or long.ended


def test_a_tab_with_many_questions_does_not_keep_another_waiting(tiny_folder):
    engine = Engine(str(tiny_folder), None, most_rows=1)
    order = []
    long = engine.answer({"base": context_of([], QUESTIONS[0])}, max_tokens=4000, asker="first")
    long.started.wait()
    several = [("greedy", question) for question in QUESTIONS[1:4]] + [("modest", QUESTIONS[4])]
    asked = [
        (asker, engine.answer({"base": context_of([], question)}, max_tokens=200, asker=asker))
        for asker, question in several
    ]
    watches = [
        threading.Thread(target=lambda a=asker, w=answering: (w.started.wait(), order.append(a)))
        for asker, answering in asked
    ]
    for watch in watches:
        watch.start()
    for watch in watches:
        watch.join()
    assert order.index("modest") <= 1, order
    assert not long.ended  # it made room, and goes on
    for _, answering in asked:
        assert "".join(piece.text for piece in answering)
    long.cancel()
    engine.close()


def test_what_is_cancelled_ends_at_once_and_leaves_the_model_as_it_was(engine):
    before = said(engine, QUESTIONS[0], ["base"])
    running = engine.answer(
        {mode: context_of([], QUESTIONS[1]) for mode in MODES[2]}, max_tokens=5000, strength=0.5
    )
    waiting = engine.answer({"adapter": context_of([], QUESTIONS[2])}, max_tokens=5000)
    waiting.cancel()
    assert running.read(timeout=30)
    running.cancel()
    for _ in running:
        pass
    assert list(waiting) == []
    assert said(engine, QUESTIONS[0], ["base"]) == before


def test_the_next_question_of_a_conversation_waits_for_its_own_words_alone(engine, tiny_model, computed):
    first = said(engine, QUESTIONS[0], MODES[2])
    # Beside both prompts, what follows both answers is computed as soon as nobody waits.
    until = time.monotonic() + 120
    while sum(width > 1 for _, width in computed) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    computed.clear()
    told = {
        mode: [*context_of([], QUESTIONS[0]), {"role": "assistant", "content": text.strip()}]
        for mode, text in first.items()
    }
    asked = {mode: context_of(conversation, QUESTIONS[1]) for mode, conversation in told.items()}
    texts = dict.fromkeys(asked, "")
    for piece in engine.answer(asked, max_tokens=12):
        texts[piece.mode] += piece.text
    alone = tiny_model.chat_tokens([{"role": "user", "content": QUESTIONS[1]}])
    nothing = tiny_model.chat_tokens([{"role": "user", "content": ""}])
    assert computed[0][1] <= len(alone) - len(nothing) + 8  # what closes a message and opens the next
    # Nothing of it shows in what is said.
    for mode, conversation in asked.items():
        again = engine.answer({mode: conversation}, max_tokens=12, goes_on=False)
        assert "".join(piece.text for piece in again) == texts[mode]


def test_adapters_change_places_without_a_trace(engine, adapters):
    first = said(engine, QUESTIONS[0], ["base", "adapter"], adapter=adapters[0])
    second = said(engine, QUESTIONS[0], ["base", "adapter"], adapter=adapters[1])
    assert first["base"] == second["base"]
    assert first["adapter"] != second["adapter"]
    assert said(engine, QUESTIONS[0], ["base", "adapter"], adapter=adapters[0]) == first
    assert said(engine, QUESTIONS[0], ["adapter"], adapter=adapters[1])["adapter"] == second["adapter"]


def test_strength_nought_is_the_base_alone_and_side_by_side(engine):
    base = said(engine, QUESTIONS[0], ["base"])["base"]
    assert said(engine, QUESTIONS[0], ["adapter"], strength=0.0) == {"adapter": base}
    assert said(engine, QUESTIONS[0], ["base", "adapter"], strength=0.0) == {"base": base, "adapter": base}
    assert said(engine, QUESTIONS[0], ["adapter"])["adapter"] != base


def test_an_adapter_that_is_missing_fails_its_own_question_only(engine, tmp_path):
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        said(engine, QUESTIONS[0], ["adapter"], adapter=tmp_path / "none")
    assert said(engine, QUESTIONS[0], ["adapter"])["adapter"]


def test_a_model_that_cannot_be_loaded_is_told_to_everybody_who_asks(tmp_path):
    engine = Engine(str(tmp_path), None)
    with pytest.raises(UserError, match=r"config\.json"):
        engine.wait_until_ready()
    with pytest.raises(UserError, match=r"config\.json"):
        engine.answer({"base": context_of([], "Who?")})


def test_a_closed_engine_answers_what_was_asked_before_and_nothing_after(tiny_folder):
    engine = Engine(str(tiny_folder), None)
    answering = engine.answer({"base": context_of([], QUESTIONS[0])}, max_tokens=4)
    engine.close()
    assert "".join(piece.text for piece in answering)
    with pytest.raises(EnvironmentCannot, match="ask again"):
        engine.answer({"base": context_of([], QUESTIONS[0])})


def test_an_answer_that_ends_amid_a_character_shows_the_whole_ones(engine):
    longest = said(engine, QUESTIONS[0], ["base", "adapter"], max_tokens=8, temperature=2.0)
    assert all(longest.values())
    for length in range(1, 8):
        heard = said(engine, QUESTIONS[0], ["base", "adapter"], max_tokens=length, temperature=2.0)
        for mode, text in heard.items():
            assert longest[mode].startswith(text) and not text.endswith("\ufffd"), (length, heard)
