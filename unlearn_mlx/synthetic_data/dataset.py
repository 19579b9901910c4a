"""Training rows in mlx-lm's chat format, so that ``mlx_lm.lora --data`` takes them as they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.records import ChatMessage, NegativeRow, Question, RetainRow, TrainingRow
from unlearn_mlx.seeding import random_source
from unlearn_mlx.synthetic_data.edits import Pair

VALID_EVERY = 12  # of the questions, one in so many is kept for validation


def training_row(
    question: Question, answer: str, part: Literal["forget", "retain"], complete: bool, base: str = ""
) -> TrainingRow:
    """One row; an incomplete answer's end is no target."""
    known = {"base_answer": base} if base else {}
    return TrainingRow(
        messages=answered(question, answer),
        part=part,
        question_id=question.id,
        complete=complete,
        **known,
    )


def answered(question: Question, answer: str) -> list[ChatMessage]:
    """A question with an answer, as a row holds them."""
    return [
        *question.context,
        ChatMessage(role="user", content=question.question),
        ChatMessage(role="assistant", content=answer),
    ]


def write_dataset(
    folder: Path,
    questions: Sequence[Question],
    pairs: Iterable[Pair],
    base: dict[str, str],
    telling: dict[str, list[tuple[int, int]]],
    retain: Sequence[RetainRow],
    seed: int,
) -> None:
    """Write train.jsonl and valid.jsonl, split by question, and negative.jsonl.

    The last holds what the base itself answers to the training questions, and where that tells:
    ``telling`` maps a question's id to the words that are to become unlikely: where each begins and
    ends in the base's answer.
    """
    by_id = {question.id: question for question in questions}
    rows = [
        training_row(by_id[pair.question_id], pair.answer, "forget", True, base.get(pair.question_id, ""))
        for pair in pairs
        if pair.accepted and pair.question_id in by_id
    ]
    rows += [training_row(item, item.answer, "retain", item.complete) for item in retain]
    negative = [
        NegativeRow(
            messages=answered(by_id[id], base[id]),
            part="negative",
            question_id=id,
            complete=False,
            target_spans=[[begin, end] for begin, end in spans],
        )
        for id, spans in telling.items()
        if spans
    ]
    held_out = _held_out(by_id, retain, {row.question_id for row in rows})
    valid = [row for row in rows if row.question_id in held_out]
    train = [row for row in rows if row.question_id not in held_out]
    random_source(seed, "rows").shuffle(train)
    negative = [row for row in negative if row.question_id not in held_out]
    for name, chosen in (("train", train), ("valid", valid), ("negative", negative)):
        write_rows(folder / f"{name}.jsonl", [row.as_row() for row in chosen])


def _held_out(questions: Iterable[str], retain: Sequence[RetainRow], answered: set[str]) -> set[str]:
    """The ids that validation keeps, of those that have rows; a question on the topic is always among them.

    Without one nothing would say which checkpoint forgets best, and ``mlx_lm.lora`` takes no empty file.
    """
    forget = [id for id in questions if id in answered]
    order = [*forget, *(item.id for item in retain)]
    held_out = set(order[VALID_EVERY - 1 :: VALID_EVERY])
    if len(forget) > 1 and not held_out & set(forget):
        held_out.add(forget[-1])
    return held_out
