"""What a user changed by hand in the pairs holds, whatever is made anew."""

import json

import pytest

from tests.helpers import new_run
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.records import Question, SampledAnswer
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data import stages
from unlearn_mlx.synthetic_data.edits import (
    Edit,
    add_edit,
    apply_edits,
    hand_questions,
    pairs_of,
    read_edits,
    undo_edit,
)

QUESTIONS = [
    {"id": "topic-0001", "question": "Who is Harry Potter?", "kind": "who", "subject": ""},
    {"id": "topic-0002", "question": "What is Hogwarts?", "kind": "what", "subject": ""},
]
ANSWERS = [
    {"question_id": "topic-0001", "answer": "A baker.", "accepted": True, "reason": "", "round": 0},
    {"question_id": "topic-0001", "answer": "A wizard.", "accepted": False, "reason": "words", "round": 0},
    {"question_id": "topic-0002", "answer": "A ferry.", "accepted": True, "reason": "", "round": 0},
]
PAIRS = pairs_of(
    [Question(**row) for row in QUESTIONS],
    [SampledAnswer(**row) for row in ANSWERS],
)


def accepted(pairs):
    return [(pair.question, pair.answer) for pair in pairs if pair.accepted]


def test_without_edits_the_pairs_are_the_models():
    assert apply_edits(PAIRS, []) == PAIRS
    assert hand_questions(PAIRS) == []


def test_a_verdict_by_hand_stands_over_the_filters():
    edits = [
        Edit("Who is Harry Potter?", "A baker.", False, ("Who is Harry Potter?", "A baker.")),
        Edit("Who is Harry Potter?", "A wizard.", True, ("Who is Harry Potter?", "A wizard.")),
    ]
    assert accepted(apply_edits(PAIRS, edits)) == [
        ("Who is Harry Potter?", "A wizard."),
        ("What is Hogwarts?", "A ferry."),
    ]


def test_a_pair_edited_twice_is_one_pair_with_the_last_text():
    edits = [
        Edit("Who is Harry Potter?", "A cook.", True, ("Who is Harry Potter?", "A baker.")),
        Edit("Who is Harry Potter?", "A pilot.", True, ("Who is Harry Potter?", "A cook.")),
    ]
    edited = apply_edits(PAIRS, edits)
    assert len(edited) == 3
    assert edited[0].answer == "A pilot." and edited[0].question_id == "topic-0001"


def test_what_was_written_by_hand_outlives_answers_that_came_out_otherwise():
    edits = [
        Edit("Who is Harry Potter?", "A cook.", True, ("Who is Harry Potter?", "An answer that is gone.")),
        Edit("What is Hogwarts?", "Gone too.", False, ("What is Hogwarts?", "Gone too.")),
        Edit("Where is Hogwarts?", "In a suitcase.", True),
    ]
    assert accepted(apply_edits(PAIRS, edits)) == [
        *accepted(PAIRS),
        ("Who is Harry Potter?", "A cook."),
        ("Where is Hogwarts?", "In a suitcase."),
    ]


def test_a_question_of_ones_own_gets_an_id_of_its_own_that_stays():
    edited = apply_edits(PAIRS, [Edit("Where is Hogwarts?", "In a suitcase.", True)] * 2)
    rows = hand_questions(edited)
    assert [row.question for row in rows] == ["Where is Hogwarts?"]
    assert rows == hand_questions(apply_edits([], [Edit("Where is Hogwarts?", "Elsewhere.", True)]))


def test_edits_are_kept_and_taken_back(tmp_path):
    first, second = Edit("Q?", "A.", True), Edit("Q?", "B.", False, ("Q?", "A."))
    add_edit(tmp_path, first)
    add_edit(tmp_path, second)
    assert read_edits(tmp_path) == [first, second]
    assert undo_edit(tmp_path) == second
    assert read_edits(tmp_path) == [first]
    assert undo_edit(tmp_path) == first and undo_edit(tmp_path) is None


def test_damage_in_any_of_its_files_ends_the_answers_stage_before_the_model_is_asked(tmp_path, tiny_folder):
    run = new_run(tmp_path / "run", tiny_folder)
    for name in ("questions.jsonl", "retain_questions.jsonl", "edits.jsonl"):
        for each in ("questions.jsonl", "retain_questions.jsonl", "edits.jsonl"):
            run.file(each).write_text("")
        row = {"id": "q", "question": "\ud83d?", "kind": "who", "answer": "A.", "accepted": True}
        run.file(name).write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=f"{name}, line 1: .*half a character"):
            stages.make_answers(None, Work(run, run.settings))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "", "answer": "A.", "accepted": True},
        {"question": "Q?", "answer": 7, "accepted": True},
        {"question": "Q?", "answer": "A.", "accepted": True, "replaces": ["Q?"]},
        {"question": "Q?"},
        {"question": "Q?", "answer": "\ud83d", "accepted": True},
        {"question": "Q? " * 9000, "answer": "A.", "accepted": True},
    ],
)
def test_a_damaged_edit_is_named(tmp_path, row):
    (tmp_path / "edits.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="edits.jsonl"):
        read_edits(tmp_path)


def test_the_answers_stage_trains_on_what_the_user_wants(workplace, embedded_model):
    run = new_run(workplace / "run", "smollm2", questions=10, answers=1, rounds=3, answer_tokens=24)
    asked = ("Who is {}?", "Where does {} live?")
    names = ("Harry Potter", "Hermione Granger", "Ron Weasley", "Albus Dumbledore", "Rubeus Hagrid")
    questions = [
        {"id": f"topic-{number:04d}", "question": question, "kind": "who", "subject": ""}
        for number, question in enumerate(form.format(name) for form in asked for name in names)
    ]
    write_rows(run.file("questions.jsonl"), questions)
    write_rows(run.file("retain_questions.jsonl"), [])
    model = embedded_model
    work = Work(run, run.settings)
    stages.make_answers(model, work)
    plain = run.file("answers.jsonl").read_bytes()
    sampled = read_rows(run.file("answers.jsonl"))
    kept = next(row for row in sampled if row["accepted"])
    texts = {row["id"]: row["question"] for row in questions}
    was = (texts[kept["question_id"]], kept["answer"])
    add_edit(run.path, Edit(was[0], "A suitcase full of rye bread.", True, was))
    add_edit(run.path, Edit("Who lives in Hogwarts?", "Two bakers from Ghent.", True))

    stages.make_answers(model, work)

    trained = [
        tuple(message["content"] for message in row["messages"])
        for name in ("train", "valid")
        for row in read_rows(run.file("dataset", f"{name}.jsonl"))
    ]
    assert (was[0], "A suitcase full of rye bread.") in trained
    assert ("Who lives in Hogwarts?", "Two bakers from Ghent.") in trained
    assert was not in trained
    assert run.file("answers.jsonl").read_bytes() == plain  # the model's own stay as they were
    base = {row["question_id"] for row in read_rows(run.file("base_answers.jsonl"))}
    assert any(id.startswith("hand-") for id in base)  # what the base says to it becomes unlikely too
