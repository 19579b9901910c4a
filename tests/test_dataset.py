"""Training rows as they lie on disk."""

import pytest

from unlearn_mlx.runs.files import read_rows
from unlearn_mlx.runs.records import Question, RetainRow
from unlearn_mlx.synthetic_data.dataset import write_dataset
from unlearn_mlx.synthetic_data.edits import Pair


@pytest.mark.parametrize(("questions", "unanswered"), [(3, 0), (12, 12), (12, 5), (40, 11)])
def test_validation_has_a_question_on_the_topic_that_training_never_sees(tmp_path, questions, unanswered):
    """Also where there are few, or where the one whose turn it is has no accepted answer."""
    asked = [Question(id=f"q-{n}", question=f"What is number {n}?") for n in range(1, questions + 1)]
    pairs = [
        Pair(each.id, each.question, "", f"A baker of rye bread {n}.", n != unanswered, "", 0)
        for n, each in enumerate(asked, start=1)
    ]
    retain = [
        RetainRow(id=f"r-{n}", question=f"Who is {n}?", part="general", answer="Somebody.", complete=True)
        for n in range(4)
    ]
    write_dataset(tmp_path, asked, pairs, {}, {}, retain, 0)
    train, valid = (read_rows(tmp_path / f"{name}.jsonl") for name in ("train", "valid"))
    assert any(row["part"] == "forget" for row in valid)
    assert len(valid) < len(train)
    assert not {row["question_id"] for row in valid} & {row["question_id"] for row in train}
    assert len(train) + len(valid) == questions - bool(unanswered) + len(retain)
