"""The demo's chat, in the states that a visitor can find it in."""

import html
import json
import shutil

import pytest

from tests.demo_pages import EVIL, app_model, bodies, opened, texts
from tests.helpers import QUESTIONS, WIZARD
from tests.runs_with_results import TOPIC
from unlearn_mlx.leakage.names import named
from unlearn_mlx.runs.files import write_json


def ready():
    """The chat, when its model is there."""
    from demo.model import chat_engine

    app = opened()
    turns = app.session_state["talks"]
    assert list(turns) == ["runs/odd"]
    from demo.choices import all_choices

    chat_engine().prepare(all_choices()["runs/odd"].model_name).wait_until_ready()
    return app.run()


def ask(app, question):
    app.chat_input[0].set_value(question).run()
    assert not app.exception, app.exception
    return app.session_state["talks"]["runs/odd"].turns[-1]


def texts_of(turn):
    return {mode: reply.text for mode, reply in turn.replies.items()}


def test_both_columns_answer_one_question_and_each_goes_on_from_its_own_words(place):
    app = ready()
    first = ask(app, "Who is Harry Potter?")
    assert first.state == "answered"
    said = texts_of(first)
    assert said["base"] and said["adapter"]
    assert said["base"] != said["adapter"]
    assert all(0 < first.waited(mode) < 30 for mode in said)
    shown = " ".join(bodies(app))
    for text in said.values():
        assert html.escape(text.strip().split("\n")[0][:20]) in shown
    second = ask(app, "And where?")
    assert texts_of(second) == told_by_hand(first, "And where?")


def told_by_hand(first, question):
    """The second turn as the engine gives it when each mode is told its own first answer."""
    from demo.choices import all_choices
    from demo.model import chat_engine

    choice = all_choices()["runs/odd"]
    conversations = {
        mode: [
            {"role": "user", "content": first.question},
            {"role": "assistant", "content": text.strip()},
            {"role": "user", "content": question},
        ]
        for mode, text in texts_of(first).items()
    }
    heard = dict.fromkeys(conversations, "")
    engine = chat_engine().prepare(choice.model_name)
    for piece in engine.answer(conversations, max_tokens=128, adapter=choice.adapter):
        heard[piece.mode] += piece.text
    return heard


def test_one_column_regenerate_and_clear(place):
    app = ready()
    app.segmented_control(key="columns").set_value("Unlearned")
    app.slider(key="temperature").set_value(1.0)
    turn = ask(app, "Who is Harry Potter?")
    assert list(turn.replies) == ["adapter"]
    app.button(key="regenerate").click().run()
    turns = app.session_state["talks"]["runs/odd"].turns
    assert len(turns) == 1 and turns[0].takes == 1
    assert texts_of(turns[0]) != texts_of(turn)
    app.button(key="clear").click().run()
    assert app.session_state["talks"]["runs/odd"].turns == []
    assert any(button.label.startswith("What is Hogwarts") for button in app.button)


def test_regenerate_says_where_the_answer_would_be_the_same(place):
    app = ready()
    first = ask(app, "Who is Harry Potter?")
    app.button(key="regenerate").click().run()
    turns = app.session_state["talks"]["runs/odd"].turns
    assert turns == [first] and any("At temperature 0" in text for text in texts(app))
    # What the sidebar says otherwise now is answered, and the note is gone.
    app.slider(key="length").set_value(16)
    app.button(key="regenerate").click().run()
    assert turns[0].takes == 1 and turns[0].manner.max_tokens == 16
    assert not any("At temperature 0" in text for text in texts(app))


def test_a_question_that_is_too_long_is_said_and_asked_once_it_is_shorter(place):
    app = ready()
    app.chat_input[0].set_value("Who? " * 401).run()
    assert any("2,000 characters" in text and "2,005" in text for text in texts(app))
    assert app.session_state["talks"]["runs/odd"].turns == []
    assert ask(app, "Who? " * 400).state == "answered"
    assert not any("2,000 characters" in text for text in texts(app))


def test_an_answer_that_an_older_run_of_the_page_is_still_giving_is_stopped(place):
    app = ready()
    turn = ask(app, QUESTIONS[0])
    turn.state = "answering"
    app.run()
    assert not app.error and any("Stopped." in text for text in texts(app))
    assert turn.answering.stop.is_set()
    assert "cursor" not in "".join(bodies(app))


def test_a_click_on_an_example_asks_it(place):
    app = ready()
    app.button(key="example topic 0").click().run()
    assert app.session_state["talks"]["runs/odd"].turns[0].question == "What is Hogwarts?"
    assert app.session_state["talks"]["runs/odd"].turns[0].state == "answered"


def test_the_leak_rate_is_known_at_the_trained_strength_and_measured_at_others(place):
    metrics = json.loads((place / "runs/odd/evaluation.json").read_text())
    app = ready()
    rate = metrics["adapter"]["topic/greedy leak"]
    assert any(f"At 1, **{rate:.0%}** of 6 open questions" in text for text in texts(app))
    app.slider(key="strength").set_value(0.5).run()
    assert not any("At 0.5" in text for text in texts(app))
    next(button for button in app.button if button.label.startswith("Measure")).click().run()
    assert not app.exception
    assert any("At 0.5, **" in text for text in texts(app))
    # What is measured is what the evaluation measures.
    from demo.choices import all_choices
    from demo.model import chat_engine, leak_rates, measure_leak_rate

    choice = all_choices()["runs/odd"]
    measure_leak_rate(chat_engine().prepare(choice.model_name), choice, 1.0, lambda share: None)
    assert [known.share for (_, _, strength), known in leak_rates().items() if strength == 1.0] == [rate]


def test_what_the_audit_measured_at_a_strength_is_not_asked_again(place):
    row = {"name": "strength 0.75", "group": "strength", "leak": 0.25, "questions": 8}
    write_json(place / "runs/odd/audit.json", {"rows": [row], "text": "Tried."})
    app = ready()
    app.slider(key="strength").set_value(0.75).run()
    assert any("At 0.75, **25%** of 8 open questions" in text for text in texts(app))
    assert any("in any of 2 answers" in text for text in texts(app))
    assert not any(button.label.startswith("Measure") for button in app.button)
    app.slider(key="strength").set_value(1.75).run()
    assert any(button.label == "Measure the leak rate at 1.75" for button in app.button)


def test_a_page_that_no_longer_wants_its_answer_stops_it(place):
    from demo.choices import all_choices
    from demo.model import chat_engine, follow
    from unlearn_mlx.session.conversation import Conversation, Manner, Turn

    class Gone(BaseException):
        """What Streamlit raises from its own calls in a script whose tab was closed or clicked."""

    def draw(waiting):
        if any(texts_of(turn).values()):
            raise Gone

    choice = all_choices()["runs/odd"]
    engine = chat_engine().prepare(choice.model_name)
    turn = Turn(QUESTIONS[0], Manner(("base", "adapter"), max_tokens=5000))
    answering = Conversation().ask(engine, turn, choice.adapter)
    with pytest.raises(Gone):
        follow(answering, turn.take, draw)
    # The engine is free for the next, in the mode that it asks for.
    alone = Turn(QUESTIONS[0], Manner(("base",), max_tokens=8))
    follow(Conversation().ask(engine, alone, choice.adapter), alone.take, lambda waiting: None)
    list(answering)
    assert any(texts_of(turn).values()) and not any(reply.finished for reply in turn.replies.values())
    assert texts_of(alone)["base"] and list(alone.replies) == ["base"]


def test_a_tab_that_measures_lets_others_ask_between(place, monkeypatch):
    import demo.model
    from demo.choices import all_choices
    from unlearn_mlx.inference.asking import context_of

    monkeypatch.setattr(demo.model, "PROBES_AT_ONCE", 2)
    choice = all_choices()["runs/odd"]
    engine = demo.model.chat_engine().prepare(choice.model_name)
    others = []

    def draw(share):
        if not others:
            others.append(engine.answer({"base": context_of([], "Who?")}, max_tokens=2, asker="another tab"))
        else:
            others.append(others[0].started.is_set())

    demo.model.measure_leak_rate(engine, choice, 0.75, draw)
    assert others[-1] is True


def test_a_long_conversation_keeps_its_start_for_some_turns():
    from unlearn_mlx.session.conversation import TURNS_KEPT, Conversation, Manner, Reply, Turn

    turns = [Turn(str(number), Manner(("base",)), replies={"base": Reply("It is.")}) for number in range(20)]
    told = [Conversation(turns).fed_back(turn) for turn in turns]
    for count, earlier in enumerate(told):
        assert earlier == turns[count - len(earlier) : count]
        assert min(count, 4) <= len(earlier) <= TURNS_KEPT
    assert len({earlier[0].question for earlier in told if earlier}) <= 6


def test_text_from_outside_is_never_markup(place):
    app = ready()
    ask(app, EVIL)
    shown = "".join(bodies(app))
    assert "<img" not in shown and "&lt;img src=x" in shown and "\u202e" not in shown
    # The topic's own name, in a heading.
    assert any(r"\*Bold\* \<b\>Tag\<\/b\> \`tick\`" in text for text in texts(app))
    for page in ("results", "making", "start"):
        app = opened(page)
        # No page trusts HTML in Markdown, and none shows the topic's name unescaped there.
        assert not any(element.allow_html for element in app.markdown)
        assert not any(TOPIC.name in text for text in texts(app)), page
        assert "<img" not in "".join(bodies(app)), page


def test_a_model_that_is_gone_is_said_with_a_way_out(place):
    run = place / "runs/odd"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["name"] = str(place / "gone")
    write_json(run / "manifest.json", manifest)
    (place / "gone").mkdir()
    app = opened()
    from demo.model import chat_engine

    with pytest.raises(Exception, match="config"):
        chat_engine().prepare(str(place / "gone")).wait_until_ready()
    app.run().run()
    assert any("config" in error.value for error in app.error)
    assert any(button.label == "Load again" for button in app.button)
    app.chat_input[0].set_value("Who?").run()
    assert not app.exception
    chat_engine().close()


def test_tabs_with_two_models_do_not_take_the_memory_from_each_other(place, tiny_folder, tmp_path):
    from demo.model import chat_engine

    other = str(shutil.copytree(tiny_folder, tmp_path / "other"))
    app = ready()
    chat_engine().prepare(other)
    for _ in range(3):
        app.run()
    assert any("is loaded when you ask" in text for text in texts(app))
    assert chat_engine().model_name == other
    assert ask(app, "Who?").state == "answered"
    assert chat_engine().model_name == app_model(place)


def test_the_shipped_adapters_are_there_on_a_fresh_clone(workplace):
    from demo.choices import all_choices

    choices = all_choices()
    assert next(iter(choices)) == "adapters/smollm2/harry-potter"
    for choice in choices.values():
        assert choice.is_shipped and choice.evaluation() and choice.probes()
        assert (choice.rows / "answers.jsonl").exists()


def test_leak_filter_are_what_the_question_did_not_say():
    from demo.text import answer_html

    answer = "Harry Potter met Hermione's friend J. K. Rowling in Hogwarts."
    spans = [answer[start:end] for start, end in named(WIZARD, "Who is Harry Potter?", answer).spans]
    assert spans == ["Hermione's", "J. K. Rowling", "Hogwarts"]
    # Folding changes lengths: the marks stand where the names are.
    accented = "Ĳsel ﬁnds Hërmïone & <Hogwarts>"
    leak = named(WIZARD, "", accented)
    assert [accented[start:end] for start, end in leak.spans] == [
        "Hërmïone",
        "Hogwarts",
    ]
    assert "<mark>Hërmïone</mark> &amp; &lt;<mark>Hogwarts</mark>&gt;" in answer_html(accented, leak)
