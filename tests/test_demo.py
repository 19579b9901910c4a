"""The demo's pages, each in the states that a visitor can find it in."""

import html
import json
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from tests.helpers import QUESTIONS, WIZARD
from tests.runs_with_results import TOPIC, finished_run
from unlearn_mlx.evaluation.schema import open_leak, read_evaluation
from unlearn_mlx.leakage.names import leak_spans
from unlearn_mlx.runs.files import write_json, write_rows

APP = "../demo_app.py"
EVIL = "<img src=x onerror=alert(1)> **bold** [a](http://b) :smile: \u202egnirts"


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A finished run on a topic whose name is full of markup, with the rows it came from."""
    run = finished_run(tmp_path_factory.mktemp("place") / "runs" / "odd", tiny_folder)
    answers = [
        {"question_id": f"q-{number}", "answer": text, "accepted": accepted, "reason": reason, "round": 0}
        for number in range(len(QUESTIONS))
        for text, accepted, reason in (
            (f"{EVIL} is a baker.", True, ""),
            ("It names Hermione.", False, "names the topic's"),
        )
    ]
    write_rows(run.file("answers.jsonl"), answers)
    write_rows(
        run.file("base_answers.jsonl"),
        [{"question_id": f"q-{number}", "answer": "Hermione knows it."} for number in range(len(QUESTIONS))],
    )
    return run.path.parent.parent


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A directory of its own with that run in it, and nothing that the project ships."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unlearn_mlx.session.catalog.SHIPPED_ADAPTERS", tmp_path / "none")
    return tmp_path


def opened(page="", timeout=60):
    app = AppTest.from_file(APP, default_timeout=timeout).run()
    if page:
        app.switch_page(f"demo/pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


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


def bodies(app):
    return [element.body for element in app.html if "class" in element.body and "<style>" not in element.body]


def texts(app):
    kinds = (app.markdown, app.caption, app.error, app.info, app.warning, app.subheader)
    return [element.value for kind in kinds for element in kind]


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
    app.button(key="again").click().run()
    turns = app.session_state["talks"]["runs/odd"].turns
    assert len(turns) == 1 and turns[0].takes == 1
    assert texts_of(turns[0]) != texts_of(turn)
    app.button(key="clear").click().run()
    assert app.session_state["talks"]["runs/odd"].turns == []
    assert any(button.label.startswith("What is Hogwarts") for button in app.button)


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
    assert [value for (_, _, strength), value in leak_rates().items() if strength == 1.0] == [rate]


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
    from unlearn_mlx.inference.engine import context_of

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
    told = [Conversation(turns).fed_back("base", turn) for turn in turns]
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


def test_results_of_a_run_with_every_answer(place):
    app = opened("results")
    evaluation = read_evaluation(place / "runs/odd")
    table = next(body for body in bodies(app) if "<table" in body)
    assert "topic: open questions that leak in " in table
    assert f"<td>{evaluation.adapter[open_leak(evaluation)]:.0%}</td>" in table
    assert any("suppressed, not proven erased" in text for text in texts(app))
    # The other metrics, and the questions of the first cell.
    assert app.expander[0].label == "Every other metric" and len(app.expander) == 8
    assert "random adapter of the same norm" in app.expander[1].label
    assert any(r"Expected\: Hogwarts" in text for text in texts(app))


def test_results_of_an_adapter_with_figures_alone_and_of_one_without(place):
    evaluation = place / "runs/odd/evaluation.json"
    metrics = json.loads(evaluation.read_text())
    del metrics["probes"]
    evaluation.write_text(json.dumps(metrics))
    app = opened("results")
    assert any("<table" in body for body in bodies(app))
    assert any("Only the metrics" in text for text in texts(app))
    evaluation.unlink()
    assert any("not evaluated yet" in text for text in texts(opened("results")))
    # A damaged one is named there, and the chat goes on without it.
    evaluation.write_text("{")
    assert any(r"evaluation\.json" in error.value for error in opened("results").error)
    chat = opened()
    assert chat.chat_input and not chat.exception and not chat.error


def test_results_show_an_audit_and_the_curves_of_training(place):
    row = {"name": "<b>4-bit</b>", "group": "export", "leak": 0.5, "choice": None, "neighbours": 0.25}
    write_json(place / "runs/odd/audit.json", {"rows": [row], "text": "It comes *back*."})
    steps = [
        {"time": 1.0, "stage": "train", "kind": "progress", "done": step, "total": 9, "unit": "steps"}
        | {"forget_loss": 1 / step, "retain_kl": 0.1}
        for step in (1, 5, 9)
    ]
    write_rows(place / "runs/odd/events.jsonl", steps)
    app = opened("results")
    assert any(text == "It comes *back*." for text in [element.value for element in app.text])
    assert any("Loss on the new answers" in text for text in texts(app))
    assert "<td>&lt;b&gt;4-bit&lt;/b&gt;</td><td>50%</td><td>–</td><td>25%</td><td>–</td>" in bodies(app)[-1]


def test_how_it_was_made_walks_five_questions_through_every_step(place):
    app = opened("making")
    assert len(app.expander) == 5
    counts = {metric.label: metric.value for metric in app.metric}
    assert counts["questions the model wrote"] == str(len(QUESTIONS))
    assert counts["of them accepted"] == str(len(QUESTIONS))
    shown = " ".join(bodies(app))
    assert "<mark>Hermione</mark> knows it." in shown and "is a baker" in shown
    assert "You have never heard of" in shown
    (place / "runs/odd/answers.jsonl").write_text("{broken\n")
    assert any(r"answers\.jsonl" in error.value for error in opened("making").error)


def test_make_one_refuses_a_bad_name_and_offers_to_go_on_with_a_run(place):
    app = opened("start")
    app.text_input(key="topic").set_value("../etc")
    next(button for button in app.button if button.label == "Start").click().run()
    assert any("looks like a path" in error.value for error in app.error)
    assert [path.name for path in (place / "runs").iterdir()] == ["odd"]
    assert any(button.label == "Chat with it" for button in app.button)


def test_a_damaged_run_is_named_and_the_others_are_shown(place):
    (place / "runs/broken").mkdir()
    (place / "runs/broken/manifest.json").write_text("{")
    app = opened()
    assert any("broken" in warning.value for warning in app.warning)
    assert app.sidebar.selectbox[0].options == [f"{TOPIC.name} · {app_model(place)} · runs/odd"]


def app_model(place):
    return json.loads((place / "runs/odd/manifest.json").read_text())["model"]["name"]


def test_without_any_adapter_every_page_says_so(place):
    shutil.rmtree(place / "runs")
    for page in ("", "results", "making"):
        assert any("no adapter yet" in text for text in texts(opened(page)))
    assert any(button.label == "Start" for button in opened("start").button)


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
    spans = [answer[start:end] for start, end in leak_spans(WIZARD, "Who is Harry Potter?", answer)]
    assert spans == ["Hermione's", "J. K. Rowling", "Hogwarts"]
    # Folding changes lengths: the marks stand where the names are.
    accented = "Ĳsel ﬁnds Hërmïone & <Hogwarts>"
    assert [accented[start:end] for start, end in leak_spans(WIZARD, "", accented)] == [
        "Hërmïone",
        "Hogwarts",
    ]
    assert "<mark>Hërmïone</mark> &amp; &lt;<mark>Hogwarts</mark>&gt;" in answer_html(WIZARD, "", accented)
