"""What the user changed by hand in a run's pairs, kept apart in ``edits.jsonl``.

An edit says which pair it takes the place of by its texts, not by its number: so it is found again
when the answers are made anew, and where they came out otherwise, what the user wrote still counts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from unlearn_mlx.runs.bounded_text import Text
from unlearn_mlx.runs.files import append_rows, write_rows
from unlearn_mlx.runs.records import Question, Record, SampledAnswer, read_records

FILE = "edits.jsonl"
BY_HAND = "by hand"  # kind of a question that the user wrote


@dataclass(frozen=True)
class Edit:
    """A pair as the user wants it. ``replaces`` is the question and answer it was, None for a new one."""

    question: str
    answer: str
    accepted: bool
    replaces: tuple[str, str] | None = None


@dataclass(frozen=True)
class Pair:
    """A question, a sampled answer to it and the verdict on that; ``round`` -1 is the user's own."""

    question_id: str
    question: str
    kind: str
    answer: str
    accepted: bool
    reason: str
    round: int

    @property
    def is_by_hand(self) -> bool:
        """Whether the user changed it or wrote it."""
        return self.reason == BY_HAND


SaidText = Annotated[Text, Field(pattern=r"\S")]  # with more than blanks


class EditRow(Record):
    """A line of edits.jsonl; ``replaces`` is the question and the answer that were there."""

    question: SaidText
    answer: SaidText
    accepted: bool
    replaces: Annotated[list[SaidText], Field(min_length=2, max_length=2)] | None = None


def read_edits(run_folder: Path) -> list[Edit]:
    """The edits of a run in the order they were made.

    Raises:
        UserError: naming a line that is no edit.
    """
    path = run_folder / FILE
    if not path.exists():
        return []
    return [
        Edit(row.question, row.answer, row.accepted, (row.replaces[0], row.replaces[1]))
        if row.replaces
        else Edit(row.question, row.answer, row.accepted)
        for row in read_records(path, EditRow)
    ]


def add_edit(run_folder: Path, edit: Edit) -> None:
    """Keep one more edit."""
    append_rows(run_folder / FILE, [asdict(edit)])


def undo_edit(run_folder: Path) -> Edit | None:
    """Take the last edit back, and return it; None if there is none."""
    edits = read_edits(run_folder)
    if edits:
        write_rows(run_folder / FILE, map(asdict, edits[:-1]))
    return edits[-1] if edits else None


def pairs_of(questions: Sequence[Question], answers: Sequence[SampledAnswer]) -> list[Pair]:
    """Questions and sampled answers, as their files hold them, joined."""
    by_id = {question.id: question for question in questions}
    return [
        Pair(
            answer.question_id,
            by_id[answer.question_id].question,
            by_id[answer.question_id].kind,
            answer.answer,
            answer.accepted,
            answer.reason,
            answer.round,
        )
        for answer in answers
        if answer.question_id in by_id
    ]


def apply_edits(pairs: Sequence[Pair], edits: Sequence[Edit]) -> list[Pair]:
    """The pairs as the user wants them.

    An edit whose pair is no longer there adds its own, unless all it said was to leave that out.
    """
    edited = list(pairs)
    # The first of two that say the same: the later one was rejected for that.
    where = {(pair.question, pair.answer): place for place, pair in reversed(list(enumerate(edited)))}
    for edit in edits:
        place = where.pop(edit.replaces, None) if edit.replaces else None
        if place is None:
            place = where.get((edit.question, edit.answer))
        if place is None and edit.replaces and not edit.accepted:
            continue
        old = edited[place] if place is not None else None
        keeps_question = old is not None and old.question == edit.question
        pair = Pair(
            old.question_id if old and keeps_question else hand_id(edit.question),
            edit.question,
            old.kind if old and keeps_question else BY_HAND,
            edit.answer,
            edit.accepted,
            BY_HAND,
            old.round if old else -1,
        )
        if place is None:
            place = len(edited)
            edited.append(pair)
        edited[place] = pair
        where[(pair.question, pair.answer)] = place
    return edited


def hand_questions(pairs: Sequence[Pair]) -> list[Question]:
    """The questions that the user wrote, as questions.jsonl holds questions, each once."""
    return [
        Question(id=id, question=question, kind=BY_HAND, subject="")
        for id, question in {
            pair.question_id: pair.question for pair in pairs if pair.kind == BY_HAND
        }.items()
    ]


def hand_id(question: str) -> str:
    """The id of a question that the user wrote: the same for the same text."""
    return f"hand-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
