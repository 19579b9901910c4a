"""A file that somebody damaged by hand, or that holds something else, is one line and exit code 2."""

import json
from pathlib import Path

import pytest

from tests.evaluated import USUAL, as_if_done, evaluated_run, evaluation_of
from tests.helpers import dataset_rows, negative_rows
from tests.runs_with_results import finished_run
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import read_audit, read_evaluation
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.records import (
    BaseAnswer,
    NegativeRow,
    ProgressEvent,
    Question,
    RetainRow,
    SampledAnswer,
    TrainingRow,
    negative_rows_file,
    read_events,
    read_records,
)
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.sharing.push import files_to_push

DEEP = "[" * 100_000 + "]" * 100_000
FOREIGN = ["", "[]", "7", "null", '"text"', "{}", "{", "\ufeff{}", DEEP, '{"a": ' * 300 + "1" + "}" * 300]
SHOWING = ("show", "report", "compare", "judge", "evaluate")  # the commands that read an evaluation


def run_at(path):
    """A run that every command can show, with all of its files."""
    run = as_if_done(evaluated_run(path))
    run.event("train", "progress", done=5, total=10, unit="steps", forget_loss=2.0, retain_kl=0.1)
    run.event("train", "validation", step=10, best=True, leak_rate=0.5, forget_loss=1.0, retain_kl=0.1)
    rows = [{"name": "adapter", "group": "plain", "leak": 0.25}]
    run.file("audit.json").write_text(json.dumps({"key": "", "rows": rows, "text": "Nothing came back."}))
    judged = {"probe": "p1", "answer": "It is a bakery.", "label": "fictional"}
    run.file("judgements.jsonl").write_text(json.dumps(judged) + "\n")
    return run


def arguments(command, path):
    return {
        "show": ["show", path],
        "report": ["report", path],
        "compare": ["compare", path],
        "judge": ["judge", path, "--json"],
        "evaluate": ["evaluate", path, "--gate", "leak<=1"],
        "runs": ["runs"],
    }[command]


def complaint_of(command, path, capsys):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(arguments(command, str(path))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unlearn: ")]
    assert len(lines) == 1
    assert len(lines[0]) < 500 and lines[0].isprintable()
    return lines[0]


def test_a_whole_run_is_shown(tmp_path, capsys):
    path = run_at(tmp_path / "run").path
    for command in SHOWING:
        assert main(arguments(command, str(path))) == 0, command


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
@pytest.mark.parametrize("name", ["evaluation.json", "manifest.json"])
def test_a_file_of_another_shape_is_one_line(tmp_path, capsys, name, content):
    path = run_at(tmp_path / "run").path
    (path / name).write_text(content)
    for command in SHOWING:
        assert name in complaint_of(command, path, capsys), command


def test_a_directory_in_the_place_of_a_file_is_one_line(tmp_path, capsys):
    path = run_at(tmp_path / "run").path
    for name in ("judgements.jsonl", "events.jsonl", "audit.json", "evaluation.json", "manifest.json"):
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()
        assert name in complaint_of("report", path, capsys)


def put(value, *where):
    """An edit of a JSON value: sets, or takes away, what lies under the keys."""

    def edit(content):
        *path, last = where
        for key in path:
            content = content[key]
        if value is GONE:
            del content[last]
        else:
            content[last] = value

    return edit


GONE = object()

EVALUATION = [
    (put(GONE, "base"), "'base' is missing"),
    (put(GONE, "adapter"), "'adapter' is missing"),
    (put(GONE, "probes"), "'probes' is missing"),
    (put([], "base"), "'base'"),
    (put("0.5", "base", "topic/open leak, any of 2"), "'base.topic/open leak, any of 2'"),
    (put(None, "adapter", "topic/open leak, any of 2"), "'adapter.topic/open leak, any of 2'"),
    (put(float("nan"), "adapter", "topic/open leak, any of 2"), "finite"),
    (put(float("inf"), "base", "topic/distinct bigrams"), "finite"),
    (put(-5, "adapter", "topic/open leak, any of 2"), "between 0 and 1"),
    (put(10**400, "adapter", "topic/open leak, any of 2"), "'adapter.topic/open leak, any of 2'"),
    (put({}, "probes"), "'probes'"),
    (put("text", "probes", 0), "'probes.0'"),
    (put(GONE, "probes", 0, "id"), "'probes.0.id' is missing"),
    (put(7, "probes", 0, "question"), "'probes.0.question'"),
    (put("essay", "probes", 0, "kind"), "'probes.0.kind'"),
    (put(["("], "probes", 0, "leak"), "regular expression"),
    (put(["[[a]"], "probes", 0, "leak"), "regular expression"),  # Python would warn, amid the screen
    (put("Hogwarts", "probes", 0, "leak"), "'probes.0.leak'"),
    (put([7], "probes", 0, "base", "answers"), "'probes.0.base.answers.0'"),
    (put([], "probes", 0, "base", "leaks"), "as many 'leaks'"),
    (put(["leak"], "probes", 0, "adapter", "labels"), "as many 'labels'"),
    (put("no", "probes", 0, "adapter", "leaked"), "'probes.0.adapter.leaked'"),
    (put([], "probes", 2, "base"), "'probes.2.base'"),
    (put(7, "probes", 2, "base", "chosen"), "'probes.2.base.chosen'"),
    (put({"topic/open leak, any of 2": {"base": [0.1]}}, "intervals"), "any of 2.base'"),
    (put({"topic/open leak, any of 2": 5}, "intervals"), "'intervals.topic/open leak, any of 2'"),
    (put({"topic/open leak, any of 2": {"base": [float("nan"), 1]}}, "intervals"), "finite"),
    (put("forgets", "verdict"), "'verdict'"),
    (put({"name": "forgets", "reason": "x", "notes": [None]}, "verdict"), "'verdict.notes.0'"),
    (put([1], "nearest_training_question"), "'nearest_training_question'"),
    (put("four", "samples"), "'samples'"),
    (put("x" * 10_000_000, "samples"), "'samples'"),
    (put({}, "base", "\x1b[31m" * 1000), "'base."),
]


@pytest.mark.parametrize(("edit", "said"), EVALUATION, ids=range(len(EVALUATION)))
def test_an_evaluation_that_was_edited_is_one_line_in_every_command(tmp_path, capsys, edit, said):
    path = run_at(tmp_path / "run").path
    content = json.loads((path / "evaluation.json").read_text())
    edit(content)
    (path / "evaluation.json").write_text(json.dumps(content))
    for command in SHOWING:
        line = complaint_of(command, path, capsys)
        assert said in line and "evaluation.json is damaged" in line and "unlearn evaluate" in line, command


MANIFEST = [
    (put(GONE, "stages"), "'stages' is missing"),
    (put([], "model"), "'model'"),
    (put(7, "model", "name"), "'model.name'"),
    (put(None, "topic"), "'topic'"),
    (put("1", "format"), "'format'"),
    (put([], "settings"), "'settings'"),
    (put([1], "settings", "seed"), "'settings.seed"),
    (put({"train": "done"}, "stages"), "'stages.train'"),
    (put({"train": {}}, "stages"), "'stages.train.state' is missing"),
    (put({"mlx": 1}, "versions"), "'versions.mlx'"),
]


@pytest.mark.parametrize(("edit", "said"), MANIFEST, ids=range(len(MANIFEST)))
def test_a_manifest_that_was_edited_is_one_line_in_every_command(tmp_path, capsys, monkeypatch, edit, said):
    monkeypatch.chdir(tmp_path)
    path = run_at(Path("runs/run")).path
    content = json.loads((path / "manifest.json").read_text())
    edit(content)
    (path / "manifest.json").write_text(json.dumps(content))
    for command in SHOWING:
        assert said in complaint_of(command, path, capsys), command


def test_settings_that_no_run_has_are_one_line_where_they_are_needed(tmp_path, capsys):
    path = run_at(tmp_path / "run").path
    content = json.loads((path / "manifest.json").read_text())
    content["settings"]["questions"] = "many"
    (path / "manifest.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["judge", str(path)]) == 2
    assert "settings: 'questions'" in capsys.readouterr().err


EVENTS = [
    ({"stage": "train", "kind": "progress", "done": "5", "total": 10, "unit": "steps"}, "'done'"),
    ({"stage": "train", "kind": "progress", "done": 5, "unit": "steps"}, "'total' is missing"),
    ({"stage": "train", "kind": "progress", "done": -1, "total": 10, "unit": "steps"}, "'done'"),
    (
        {"stage": "train", "kind": "progress", "done": 5, "total": 9, "unit": "s", "forget_loss": "2"},
        "'forget_loss'",
    ),
    ({"stage": "train", "kind": "validation", "step": [5]}, "'step'"),
    ({"stage": "train", "kind": "stage"}, "'state' is missing"),
    ({"stage": "train", "kind": "error", "text": "x", "exit_code": "2"}, "'exit_code'"),
    ({"stage": "answers", "kind": "acceptance", "rate": 0.5, "by_reason": [1]}, "'by_reason'"),
    ({"kind": ["progress"], "stage": "train"}, "'kind'"),
    ({}, "'stage' is missing"),
]


@pytest.mark.parametrize(("event", "said"), EVENTS, ids=range(len(EVENTS)))
def test_an_event_that_was_edited_is_named_by_its_line(tmp_path, capsys, event, said):
    run = run_at(tmp_path / "run")
    number = len(run.events()) + 1
    with run.file("events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    line = complaint_of("report", run.path, capsys)
    assert f"events.jsonl, line {number}: " in line and said in line


def test_a_training_that_diverged_is_drawn_as_far_as_it_goes(tmp_path, capsys):
    run = run_at(tmp_path / "run")
    run.event("train", "progress", done=10, total=10, unit="steps", forget_loss=float("nan"), retain_kl=1.0)
    assert main(["report", str(run.path)]) == 0
    assert "NaN" not in run.file("report.html").read_text().split("<script>")[0]


AUDIT = [
    ([], "should be a JSON object"),
    ({"text": "x"}, "'rows' is missing"),
    ({"rows": [{"name": "base"}]}, "'rows.0.leak' is missing"),
    ({"rows": [{"name": 7, "leak": 0.5}]}, "'rows.0.name'"),
    ({"rows": [{"name": "base", "leak": 1.5}]}, "'rows.0.leak'"),
    ({"rows": [{"name": "base", "leak": 0.5, "choice": "0.5"}]}, "'rows.0.choice'"),
    ({"rows": [], "text": ["x"]}, "'text'"),
]


@pytest.mark.parametrize(("content", "said"), AUDIT, ids=range(len(AUDIT)))
def test_an_audit_that_was_edited_is_one_line(tmp_path, capsys, content, said):
    run = run_at(tmp_path / "run")
    run.file("audit.json").write_text(json.dumps(content))
    line = complaint_of("report", run.path, capsys)
    assert said in line and "audit.json is damaged" in line
    run.mark("audit", "done")
    capsys.readouterr()
    assert main(["audit", str(run.path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "JSON object"),
        ({"probe": "p1", "answer": "x"}, "'label' is missing"),
        ({"probe": "p1", "answer": "x", "label": ["leak"]}, "'label'"),
        ({"probe": "p1", "answer": {}, "label": "leak"}, "'answer'"),
    ],
)
def test_a_judgement_that_was_edited_is_named_by_its_line(tmp_path, capsys, row, said):
    run = run_at(tmp_path / "run")
    run.file("judgements.jsonl").write_text(json.dumps(row) + "\n")
    for command in ("report", "judge"):
        line = complaint_of(command, run.path, capsys)
        assert "judgements.jsonl, line 1: " in line and said in line


QUESTION = {"id": "q-1", "question": "Who?", "kind": "who", "subject": ""}
ROWS = [
    (Question, {**QUESTION, "question": 7}, "'question'"),
    (Question, {**QUESTION, "question": "Who is \ud83d?"}, "half a character"),
    (Question, {"question": "Who?"}, "'id' is missing"),
    (RetainRow, {**QUESTION, "part": "general", "answer": "x"}, "'complete' is missing"),
    (RetainRow, {**QUESTION, "part": "general", "answer": "x", "complete": "yes"}, "'complete'"),
    (BaseAnswer, {"question_id": "q-1", "answer": None}, "'answer'"),
    (SampledAnswer, {"question_id": "q-1", "answer": "x", "accepted": "yes"}, "'accepted'"),
    (SampledAnswer, {"question_id": [], "answer": "x", "accepted": True}, "'question_id'"),
    (TrainingRow, {**dataset_rows(1)[0], "messages": "Hello"}, "'messages'"),
    (TrainingRow, {**dataset_rows(1)[0], "messages": [{"role": "user", "content": "x"}]}, "'messages'"),
    (TrainingRow, {**dataset_rows(1)[0], "messages": [{"role": "user"}] * 2}, "'messages.0.content'"),
    (TrainingRow, {**dataset_rows(1)[0], "part": "keep"}, "'part'"),
    (NegativeRow, {**negative_rows(1)[0], "target_spans": [[1]]}, "'target_spans.0'"),
    (NegativeRow, {**negative_rows(1)[0], "target_spans": [[-1, 2]]}, "'target_spans.0.0'"),
    (NegativeRow, {**negative_rows(1)[0], "messages": dataset_rows(1)[0]["messages"][:1]}, "'messages'"),
]


@pytest.mark.parametrize(("kind", "row", "said"), ROWS, ids=range(len(ROWS)))
def test_a_row_that_was_edited_is_named_by_its_line(tmp_path, kind, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: ") as caught:
        read_records(path, kind)
    assert said in str(caught.value) and str(caught.value).isprintable()


def test_what_earlier_versions_wrote_is_read(tmp_path):
    run = run_at(tmp_path / "run")
    manifest = json.loads(run.file("manifest.json").read_text())
    settings = manifest["settings"]
    settings |= {"avoid_weight": settings.pop("npo_weight"), "likeness": settings.pop("similarity")}
    run.file("manifest.json").write_text(json.dumps(manifest))
    assert open_run(run.path).settings == run.settings
    evaluation = evaluation_of(*USUAL)
    nearest = evaluation["nearest_training_question"]
    nearest["likeness"] = nearest.pop("similarity")
    run.file("evaluation.json").write_text(json.dumps(evaluation))
    assert read_evaluation(run.path).nearest_training_question.similarity == 40.0
    row = {**negative_rows(1)[0], "part": "avoid"}
    row["telling"] = row.pop("target_spans")
    write_rows(run.file("dataset", "avoid.jsonl"), [row])
    (read,) = read_records(negative_rows_file(run.file("dataset")), NegativeRow)
    assert read.target_spans == row["telling"]
    run.event("train", "progress", done=1, total=2, unit="steps", avoidance=0.5)
    last = read_events(run.file("events.jsonl"))[-1]
    assert isinstance(last, ProgressEvent) and last.negative_preference == 0.5


def test_what_a_newer_version_adds_is_kept(tmp_path):
    run = run_at(tmp_path / "run")
    manifest = {**json.loads(run.file("manifest.json").read_text()), "new": {"a": [1]}}
    run.file("manifest.json").write_text(json.dumps(manifest))
    open_run(run.path).mark("train", "done")
    assert json.loads(run.file("manifest.json").read_text())["new"] == {"a": [1]}
    run.event("train", "celebration", colour="green")
    assert run.events()[-1].kind == "celebration"


def test_the_shipped_adapters_are_read(pytestconfig):
    root = pytestconfig.rootpath
    for folder in sorted((root / "adapters" / "smollm2").iterdir()):
        written, read = json.loads((folder / "evaluation.json").read_text()), read_evaluation(folder).as_row()
        # Its metrics' keys say the number of answers now.
        assert list(read["base"].values()) == list(written["base"].values())
        assert read["probes"] == written["probes"]
        assert read_audit(folder).rows and read_events(folder / "events.jsonl")
        rows = root / "data" / "synthetic" / "smollm2" / folder.name
        for name, kind in {
            "questions": Question,
            "answers": SampledAnswer,
            "dataset/train": TrainingRow,
            "dataset/negative": NegativeRow,
        }.items():
            path = rows / f"{name}.jsonl"
            assert [row.as_row() for row in read_records(path, kind)] == read_rows(path)


def test_runs_lists_what_is_damaged_beside_what_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        run_at(Path("runs") / name)
    Path("runs/bad/manifest.json").write_text(DEEP)
    capsys.readouterr()
    assert main(["runs"]) == 0
    bad, good = capsys.readouterr().out.splitlines()
    assert "damaged" in bad and "manifest.json" in bad and "Harry Potter" in good


def test_what_leaves_the_machine_is_read_first(tmp_path, tiny_folder, capsys):
    run = finished_run(tmp_path / "run", tiny_folder)
    for name in ("answers.jsonl", "evaluation.json"):
        whole = run.file(name).read_text() if run.file(name).exists() else ""
        run.file(name).write_text('{"question_id": 7}\n')
        with pytest.raises(UserError, match=name):
            files_to_push(open_run(run.path), "someone/something")
        if name == "answers.jsonl":
            run.file(name).write_text(whole)
    assert main(["export", str(run.path), "--format", "adapter", "--out", str(tmp_path / "out")]) == 2
    assert "evaluation.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
