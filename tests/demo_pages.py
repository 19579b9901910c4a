"""The demo's pages without a browser, in a folder with one finished run."""

import json
import shutil

from streamlit.testing.v1 import AppTest

from tests.helpers import QUESTIONS
from tests.runs_with_results import finished_run
from unlearn_mlx.runs.files import write_rows

APP = "../demo_app.py"
EVIL = "<img src=x onerror=alert(1)> **bold** [a](http://b) :smile: \u202egnirts"


def make_place(folder, model_folder):
    """A finished run on a topic whose name is full of markup, with the rows it came from, in a folder."""
    run = finished_run(folder / "runs" / "odd", model_folder)
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


def enter_place(made, folder, monkeypatch):
    """Work in a copy of it, with nothing that the project ships; the copy's folder."""
    shutil.copytree(made / "runs", folder / "runs")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", folder / "none")
    return folder


def opened(page="", timeout=60):
    app = AppTest.from_file(APP, default_timeout=timeout).run()
    if page:
        app.switch_page(f"demo/pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


def bodies(app):
    return [element.body for element in app.html if "class" in element.body and "<style>" not in element.body]


def texts(app):
    kinds = (app.markdown, app.caption, app.error, app.info, app.warning, app.subheader)
    return [element.value for kind in kinds for element in kind]


def app_model(place):
    return json.loads((place / "runs/odd/manifest.json").read_text())["model"]["name"]
