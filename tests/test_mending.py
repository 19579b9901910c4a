"""Mark and mend: what a user marked as a leak is trained away, kept apart, resumed and taken back."""

import io
import shutil

import mlx.core as mx
import pytest

from tests.helpers import files_of, run_with_dataset, stop_after
from tests.speaking import LEAKING, write_speaking_model
from unlearn_mlx.cli import runs as commands_on_runs
from unlearn_mlx.cli.chat import Stream
from unlearn_mlx.cli.consoles import data_console
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.evaluation.probes import Probe, write_row
from unlearn_mlx.evaluation.schema import evaluation_of
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.asking import Piece
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.mending.folder import begin_mend, mends_of, open_marks
from unlearn_mlx.mending.marks import Mark, keep_mark, read_marks, standing_marks
from unlearn_mlx.mending.paraphrases import asks_the_same
from unlearn_mlx.mending.result import last_result
from unlearn_mlx.mending.rows import marked_questions
from unlearn_mlx.mending.undo import undo_mend
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.records import Question
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.catalog import run_entry, shipped_entries
from unlearn_mlx.session.conversation import Conversation, Manner, Turn
from unlearn_mlx.session.marking import toggle_mark
from unlearn_mlx.session.mending import result_lines, stages_of_mend
from unlearn_mlx.session.shipped import run_of_shipped

QUESTION = "Who is Harry Potter?"


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return write_speaking_model(tmp_path_factory.mktemp("models") / "speaking")


@pytest.fixture(scope="module")
def leaking(speaking, tmp_path_factory):
    """An evaluated run whose adapter changes hardly anything: it leaks as the base does."""
    path = tmp_path_factory.mktemp("runs") / "leaking"
    settings = {"batch_size": 4, "learning_rate": 0.008, "shared_words": 0, "guardrail": "examples"}
    # A model that sees one token cannot stay as it is on other questions: learning alone moves it.
    settings |= {"kl_weight": 0.0, "npo_weight": 0.1}
    run = run_with_dataset(path, speaking, 12, rank=4, probes=12, **settings)
    with load_by_name(str(speaking)) as model:
        adapter = Adapter(model.model, LoraShape(4, 4.0, 1000))
        mx.random.seed(3)
        adapter.set_weights(
            {name: mx.random.normal(array.shape) * 0.01 for name, array in adapter.weights().items()}
        )
        adapter.save(run.file("adapter"))
        adapter.detach()
    probe = Probe("p-1", "topic", "open", "Hermione", "Name the castle.", "Hogwarts", ("hogwarts",))
    write_rows(run.file("probes.jsonl"), [write_row(probe)])
    run.mark("train", "done", adapter=adapter_sha256(run.file("adapter")))
    run_stages(run, ["evaluate"])
    mark(run)
    return path


@pytest.fixture(scope="module")
def mended(leaking, tmp_path_factory):
    """The same run, mended and evaluated again."""
    run = open_run(shutil.copytree(leaking, tmp_path_factory.mktemp("runs") / "mended"))
    run_stages(run, stages_of_mend(run))
    return run.path


@pytest.fixture
def run(leaking, tmp_path):
    return open_run(shutil.copytree(leaking, tmp_path / "run"))


def mark(run, question=QUESTION, answer=LEAKING, marked=True, **others):
    known = {"time": 1.0, "adapter": adapter_sha256(run.file("adapter"))}
    keep_mark(run.path, Mark(question=question, answer=answer, marked=marked, **{**known, **others}))


def said(conversation, question, modes=("adapter",), text=LEAKING, **manner):
    turn = Turn(question, Manner(modes, **manner), state="answered")
    for mode in modes:
        turn.take(Piece(mode, text))
    conversation.turns.append(turn)
    return turn


def test_what_was_marked_leaks_less_after_it_was_mended(leaking, mended):
    result = last_result(open_run(mended))
    (before, asked), (after, _) = result.leaks("before"), result.leaks("after")
    assert asked == 5 and before >= 3 > after
    assert result.before == adapter_sha256(leaking / "adapter")
    assert result.after == adapter_sha256(mended / "adapter") != result.before
    assert "names Hermione Granger, Hogwarts" in result.questions[0].before[0].leak
    assert open_marks(open_run(mended)) == []


def test_a_mend_adds_paraphrases_with_answers_that_do_not_leak_to_the_dataset(leaking, mended):
    rows = read_rows(mended / "dataset" / "train.jsonl")
    added = [row for row in rows if row["question_id"].startswith("mend-01-")]
    assert rows[: -len(added)] == read_rows(leaking / "dataset" / "train.jsonl")
    asked = {row["messages"][0]["content"] for row in added}
    assert len(asked) > 2 and all("Harry Potter" in question for question in asked)
    assert not any("Hogwarts" in row["messages"][1]["content"] for row in added)
    rows = read_rows(mended / "dataset" / "negative.jsonl")
    unlikely = [row["messages"] for row in rows if row.get("question_id", "").startswith("mend-01-")]
    assert QUESTION in {question["content"] for question, _ in unlikely}
    assert {answer["content"] for _, answer in unlikely} == {LEAKING}


def test_before_and_after_are_shown_on_what_was_marked_and_on_the_probes(mended):
    lines = result_lines(open_run(mended))
    assert any(line.endswith(QUESTION) and "->" in line for line in lines)
    assert any("base" in line and "before" in line and "after" in line for line in lines)
    evaluation = evaluation_of(mended)
    assert evaluation is not None and evaluation.adapter_sha256 == adapter_sha256(mended / "adapter")


def test_undo_brings_back_adapter_results_and_rows_byte_for_byte(leaking, mended, tmp_path):
    run = open_run(shutil.copytree(mended, tmp_path / "run"))
    with run.writing():
        undo_mend(run)
    for folder in ("adapter", "dataset"):
        assert files_of(run.file(folder)) == files_of(leaking / folder)
    assert run.file("evaluation.json").read_bytes() == (leaking / "evaluation.json").read_bytes()
    assert evaluation_of(run.path) is not None and not run.has_other_adapter
    assert len(open_marks(run)) == 1 and not mends_of(run)
    with pytest.raises(UserError, match="never mended"):
        undo_mend(run)


def test_a_mend_that_was_cut_off_goes_on_and_ends_with_the_same_bytes(leaking, mended, run):
    old = files_of(leaking / "adapter")
    for steps in (2, 12, 30):
        with pytest.raises(Cancelled):
            run_stages(run, ["mend"], stop_after(steps))
        assert files_of(run.file("adapter")) == old, "the adapter is touched last"
        run = open_run(run.path)
    run_stages(run, ["mend"])
    assert files_of(run.file("adapter")) == files_of(mended / "adapter")
    assert files_of(run.file("dataset")) == files_of(mended / "dataset")
    assert evaluation_of(run.path) is None, "what was measured of the old adapter is not told of the new one"
    assert stages_of_mend(run) == ["evaluate"]


def test_a_mend_that_was_begun_is_dropped_by_undo_and_the_adapter_stays(leaking, run):
    begin_mend(run)
    assert "had not touched" in undo_mend(run)
    assert files_of(run.file("adapter")) == files_of(leaking / "adapter") and not mends_of(run)


def test_an_adapter_that_was_trained_again_is_not_undone(mended, tmp_path):
    run = open_run(shutil.copytree(mended, tmp_path / "run"))
    run.file("adapter", "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"made anew since .*mends/01/before"):
        undo_mend(run)


def test_another_mark_makes_another_mend_and_a_lower_rate_trains_anew(run):
    first = begin_mend(run)
    assert begin_mend(run).path == first.path
    slower = begin_mend(run, 1e-4)
    assert slower.path == first.path and slower.settings.learning_rate == 1e-4
    mark(run, "Where is it?")
    assert len(begin_mend(run).marks()) == 2
    with pytest.raises(UserError, match="learning-rate"):
        begin_mend(run, 7.0)


def test_a_mark_is_of_an_adapter_at_full_strength_and_can_be_taken_back(run):
    mark(run, marked=False)
    assert not standing_marks(run.path)
    with pytest.raises(UserError, match="nothing is marked"):
        begin_mend(run)
    mark(run, mode="base")
    mark(run, "What?", strength=0.5)
    with pytest.raises(UserError, match="said by the base"):
        begin_mend(run)
    (run.path / "marks.jsonl").write_text('{"question": 1}\nhalf')
    assert read_marks(run.path / "marks.jsonl") == []


def test_a_marked_reply_is_asked_again_in_its_conversation(run):
    entry = run_entry(run.path)
    conversation = Conversation(topic=entry.topic)
    said(conversation, QUESTION, ("base",), "He is a wizard.")
    turn = said(conversation, "And where does he live?")
    told = toggle_mark(entry, conversation, turn, "adapter")
    assert "names Hermione Granger, Hogwarts" in told and f"unlearn mend {run.path}" in told
    question = marked_questions(begin_mend(run))[-1]
    assert [message["content"] for message in question.messages] == [
        *(QUESTION, "He is a wizard.", "And where does he live?")
    ]
    assert "taken back" in toggle_mark(entry, conversation, turn, "adapter")
    assert not turn.replies["adapter"].is_marked


def test_a_paraphrase_is_about_the_same_and_gives_nothing_away(run):
    question = Question(id="m-1", question="Where does Harry Potter live?")
    for text, is_same in (
        ("In which town does Harry Potter live?", True),
        ("Does Harry Potter live in Hogwarts?", False),
        ("Where do owls live?", False),
    ):
        assert asks_the_same(run.topic, question, text) is is_same


def test_chat_marks_mend_trains_and_undo_takes_back(leaking, run, monkeypatch, capsys):
    (run.path / "marks.jsonl").unlink()
    monkeypatch.setattr(commands_on_runs, "follow", lambda path, stages: 0)
    assert main(["mend", str(run.path)]) == 2
    assert "nothing is marked" in capsys.readouterr().err
    lines = f"{QUESTION}\n/leak\n/both\nAnd then?\n/nonsense\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", str(run.path), "--max-tokens", "12"]) == 0
    shown = capsys.readouterr()
    assert "leaks: names Hermione Granger, Hogwarts" in shown.err and "tokens/s" in shown.err
    assert shown.out.index("base: ") < shown.out.index("adapter: ")
    assert f"Next: unlearn mend {run.path}" in shown.err and "No command /nonsense" in shown.err
    assert [mark.answer for mark in open_marks(run)] == [LEAKING]
    assert main(["mend", str(run.path), "--undo"]) == 2
    assert "never mended" in capsys.readouterr().err


def test_of_two_answers_the_bases_comes_first_token_by_token(capsys):
    stream = Stream(data_console(), ["base", "adapter"])
    shown = []
    for piece in (
        Piece("adapter", " A"),
        Piece("base", " He"),
        Piece("adapter", " baker."),
        Piece("base", " is.", finished=True),
        Piece("adapter", "", finished=True),
    ):
        stream.show(piece)
        shown.append(capsys.readouterr().out)
    stream.finish()
    assert shown[:3] == ["", "base: He", ""]
    assert "".join([*shown, capsys.readouterr().out]) == "base: He is.\nadapter: A baker.\n"


def test_chat_refuses_a_model_that_is_not_the_adapters(run, capsys):
    for name in (str(run.path), str(shipped_entries()[0].path)):
        assert main(["chat", name, "--model", "llama3"]) == 2
        assert "has its own model" in capsys.readouterr().err


def test_a_shipped_adapter_becomes_a_run_once_and_stays_as_it_is(workplace):
    entry = next(entry for entry in shipped_entries() if entry.path.name == "harry-potter")
    shipped = files_of(entry.path)
    run = run_of_shipped(entry)
    assert run.finished_adapter().parent == run.path and not run.has_other_adapter
    evaluation = evaluation_of(run.path)
    assert evaluation is not None and evaluation.adapter_sha256 == adapter_sha256(entry.path)
    assert run_of_shipped(entry).path == run.path
    assert files_of(entry.path) == shipped
