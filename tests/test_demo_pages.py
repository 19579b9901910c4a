"""The demo's other pages: results, how it was made, making one; and which adapters there are."""

import json
import shutil

from tests.demo_pages import app_model, bodies, opened, texts
from tests.helpers import QUESTIONS
from tests.runs_with_results import TOPIC
from unlearn_mlx.evaluation.schema import open_leak, read_evaluation
from unlearn_mlx.runs.files import write_json, write_rows


def test_results_of_a_run_with_every_answer(place):
    app = opened("results")
    evaluation = read_evaluation(place / "runs/odd")
    table = next(body for body in bodies(app) if "<table" in body)
    assert "topic: open questions that leak in " in table
    assert f"<td>{evaluation.adapter[open_leak(evaluation)]:.0%}</td>" in table
    # Verdict, then the figure that says most, large, then the table.
    key = open_leak(evaluation)
    figure = f"<b>{evaluation.base[key]:.0%} → {evaluation.adapter[key]:.0%}</b><span>topic: open questions"
    assert figure in bodies(app)[0] and bodies(app).index(table) == 1
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
    cells = ("&lt;b&gt;4-bit&lt;/b&gt;", "50%", "–", "25%", "–", "–")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in bodies(app)[-1]


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


def test_make_one_tells_memory_and_time_and_asks_for_a_topic(place):
    app = opened("start")
    told = [text for text in texts(app) if r"memory about" in text]
    assert len(told) == 1 and "minutes" in told[0], texts(app)
    next(box for box in app.selectbox if box.label == "Work").set_value("standard").run()
    assert any("memory about" in text and text not in told for text in texts(app))
    next(button for button in app.button if button.label == "Start").click().run()
    assert not app.error
    assert any("topic is empty" in text and "unlearn" not in text for text in texts(app))


def test_a_damaged_run_is_named_and_the_others_are_shown(place):
    (place / "runs/broken").mkdir()
    (place / "runs/broken/manifest.json").write_text("{")
    app = opened()
    assert any("broken" in warning.value for warning in app.warning)
    assert app.sidebar.selectbox[0].options == [f"{TOPIC.name} · {app_model(place)} · runs/odd"]


def test_without_any_adapter_every_page_says_so(place):
    shutil.rmtree(place / "runs")
    for page in ("", "results", "making"):
        assert any("no adapter yet" in text for text in texts(opened(page)))
    assert any(button.label == "Start" for button in opened("start").button)
