"""Marking a leak in the demo's chat, and having it mended."""

import shutil
import subprocess
import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest

from tests.runs_with_results import finished_run
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.files import read_rows, sha256_of, write_json

SAID = "A friend of Hermione."


def test_a_marked_answer_is_kept_with_its_reason_and_a_button_mends_it(workplace, tiny_folder, monkeypatch):
    started = []

    def start(run, stages):
        started.append((run, list(stages)))
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", workplace / "none")
    monkeypatch.setattr("unlearn_mlx.session.processes.start_worker", start)
    run = finished_run(workplace / "runs" / "odd", tiny_folder)
    from demo.model import chat_engine

    chat_engine().prepare(run.model_name).wait_until_ready()
    app = AppTest.from_file("../demo_app.py", default_timeout=60).run()
    app.chat_input[0].set_value("Who is Harry Potter?").run()
    turn = app.session_state["talks"]["runs/odd"].turns[-1]
    turn.replies["adapter"].text = SAID
    app.run()
    assert any("leaks: names Hermione" in caption.value for caption in app.caption)
    app.button(key="mark").click().run()
    rows = read_rows(run.file("marks.jsonl"))
    assert [row["answer"] for row in rows] == [SAID]
    assert rows[0]["adapter"] == adapter_sha256(run.file("adapter"))
    assert any("marked as a leak" in caption.value for caption in app.caption)
    assert app.button(key="mark").label == "Take the mark back"
    app.button(key="mend").click().run()
    assert not app.exception and not app.error
    assert started == [(Path("runs/odd"), ["mend", "evaluate"])]
    app.button(key="mark").click().run()
    assert not [button for button in app.button if button.key == "mend"]
    chat_engine().close()


def test_a_mended_adapter_is_hashed_once_and_not_with_every_rerun(workplace, tiny_folder, monkeypatch):
    hashed = []

    def counting(path):
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr("unlearn_mlx.runs.shipped.SHIPPED_ADAPTERS", workplace / "none")
    monkeypatch.setattr("unlearn_mlx.runs.adapter_files.sha256_of", counting)
    run = finished_run(workplace / "runs" / "odd", tiny_folder)
    mend = run.file("mends", "01")
    mend.mkdir(parents=True)
    shutil.copyfile(run.file("manifest.json"), mend / "manifest.json")
    said = [{"answer": SAID, "leak": "names Hermione"}]
    question = {"question": "Who?", "before": said, "after": said}
    result = {"before": "", "after": adapter_sha256(run.file("adapter")), "questions": [question]}
    write_json(mend / "result.json", {**result, "paraphrases": 1, "answers": 1})
    app = AppTest.from_file("../demo_app.py", default_timeout=60).run()
    assert any("1 marked question 1 leaked" in caption.value for caption in app.caption)
    hashed.clear()
    app.run()
    assert any("1 marked question 1 leaked" in caption.value for caption in app.caption)
    assert hashed == []
