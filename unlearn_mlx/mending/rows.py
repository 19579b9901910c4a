"""What a mend is trained on, and how its rows become part of the run's dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.mending.folder import Mend, finished_mends
from unlearn_mlx.mending.marks import Mark
from unlearn_mlx.mending.retain import further_retain_rows
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.records import (
    BaseAnswer,
    NegativeRow,
    Question,
    Record,
    TrainingRow,
    negative_rows_file,
    read_records,
)
from unlearn_mlx.runs.run import Run, Work
from unlearn_mlx.seeding import random_source
from unlearn_mlx.synthetic_data.answers import GuardedAnswers, answer_limit, base_answers, guarded_answers
from unlearn_mlx.synthetic_data.dataset import answered, training_row
from unlearn_mlx.synthetic_data.guardrail import AUTO, DEFAULT, Guardrail, named_guardrail
from unlearn_mlx.synthetic_data.leak_filter import LeakFilter
from unlearn_mlx.synthetic_data.recall import recalled_in
from unlearn_mlx.text.words import fold

HELD_OUT_EVERY = 4  # of the paraphrases of a question, one in so many is kept for validation
RETAIN_SHARE = 1.5  # retain rows for each new one
FEWEST_RETAIN = 24
VALID_RETAIN, VALID_FORGET = 24, 12  # of the run's own held-out rows
DATASET_FILES = ("train.jsonl", "valid.jsonl", "negative.jsonl")


def marked_questions(mend: Mend) -> list[Question]:
    """The questions of the marks, each once in its context."""
    found: dict[tuple[str, ...], Question] = {}
    for mark in mend.marks():
        key = (mark.question, *(message.content for message in mark.context))
        id = f"mend-{mend.path.name}-{len(found) + 1:03d}"
        question = Question(id=id, question=mark.question, kind="marked", subject="", context=mark.context)
        found.setdefault(key, question)
    return list(found.values())


def root_of(question: Question) -> str:
    """The id of the marked question that a question is, or is a paraphrase of."""
    return "-".join(question.id.split("-")[:3])


@dataclass(frozen=True)
class RowsOfRun:
    """The rows that the run was trained on and validated with."""

    train: list[TrainingRow]
    valid: list[TrainingRow]
    negative: list[NegativeRow]

    def retained(self, near: bool) -> list[str]:
        """What the base answers to neighbours, or to everything else."""
        return [
            row.messages[-1].content
            for row in (*self.train, *self.valid)
            if row.part == "retain" and row.question_id.startswith("neighbour") is near
        ]


def rows_of_run(run: Run) -> RowsOfRun:
    """The run's own rows, without those of its mends.

    Raises:
        UserError: where a file is missing or damaged.
    """
    folder = run.file("dataset")
    train, valid = (read_records(folder / f"{name}.jsonl", TrainingRow) for name in ("train", "valid"))
    path = negative_rows_file(folder)
    negative = read_records(path, NegativeRow) if path.exists() else []
    return RowsOfRun(
        [row for row in train if not _is_of_a_mend(row.question_id)],
        [row for row in valid if not _is_of_a_mend(row.question_id)],
        [row for row in negative if not _is_of_a_mend(row.question_id)],
    )


@dataclass(frozen=True)
class Telling:
    """What base and adapter say to a mend's questions, by the questions' ids, and what judges others by it.

    ``said`` holds the marked answers to the question, one after the other, ``told`` all that must not be
    said again.
    """

    base: dict[str, str]
    said: dict[str, str]
    told: dict[str, str]
    leaks: LeakFilter


def telling_of(
    mend: Mend, questions: Sequence[Question], base: dict[str, str], own: RowsOfRun, similarity: float
) -> Telling:
    """What judges answers to the mend's questions: the run's filter, which knows the marked answers too."""
    said = _said(mend, questions)
    path = mend.of.file("base_answers.jsonl")
    known = {row.question_id: row.answer for row in read_records(path, BaseAnswer)} if path.exists() else {}
    told = {
        question.id: f"{base.get(question.id, '')} {said[root_of(question)]}".strip()
        for question in questions
    }
    asked = {question.id: question.asked for question in questions}
    leaks = LeakFilter(
        mend.topic,
        {**known, **told},
        own.retained(near=False),
        similarity,
        own.retained(near=True),
        asked,
        recalled_in(mend.of.path),
    )
    return Telling(base, said, told, leaks)


def _said(mend: Mend, questions: Sequence[Question]) -> dict[str, str]:
    """The marked answers by the id of their question."""

    def is_of(mark: Mark, question: Question) -> bool:
        return mark.question == question.question and mark.context == question.context

    return {
        question.id: " ".join(mark.answer.strip() for mark in mend.marks() if is_of(mark, question))
        for question in questions
        if question.kind == "marked"
    }


def write_rows_of_mend(
    model: ChatModel, work: Work, mend: Mend, questions: Sequence[Question], probes: Sequence[str]
) -> None:
    """Answer the questions behind the guardrail, and write answers.jsonl, base_answers.jsonl and dataset/.

    Raises:
        UserError: where no answer to a marked question or its paraphrases passed the filter.
    """
    settings = work.settings
    own = rows_of_run(mend.of)
    completions = base_answers(model, work, "answers", "base", questions)
    base = {id: completion.text.strip() for id, completion in completions.items()}
    telling = telling_of(mend, questions, base, own, settings.similarity)
    limit = answer_limit(list(completions.values()))
    asking = GuardedAnswers(model, work, "answers", mend.topic, telling.leaks, limit)
    answers = guarded_answers(asking, questions, guardrails_of(mend.of))
    write_rows(mend.file("answers.jsonl"), [answer.as_row() for answer in answers])
    accepted: dict[str, list[str]] = {question.id: [] for question in questions}
    for answer in answers:
        if answer.accepted:
            accepted[answer.question_id].append(answer.answer)
    if not any(accepted.values()):
        raise UserError(
            f"none of {len(answers)} answers behind the guardrail passed the leak filter "
            f"({mend.file('answers.jsonl')} has the reasons): mark an answer to another question in "
            f"'unlearn chat {shell_word(mend.of.path)}', and mend again"
        )
    retain = [row for row in own.train if row.part == "retain"]
    wanted = max(FEWEST_RETAIN, round(RETAIN_SHARE * sum(map(len, accepted.values()))))
    further = further_retain_rows(model, work, retain, wanted, probes)
    own = replace(own, train=[*own.train, *further])
    write_rows(
        mend.file("base_answers.jsonl"), [{"question_id": id, "answer": text} for id, text in base.items()]
    )
    _write_dataset(mend, questions, accepted, telling, own, settings.seed)


def guardrails_of(run: Run) -> list[Guardrail]:
    """What the run was made with."""
    wanted = run.settings.guardrail
    names = (run.manifest.guardrails or [DEFAULT.name]) if wanted == AUTO else [wanted]
    return [named_guardrail(name) for name in names]


def _write_dataset(
    mend: Mend,
    questions: Sequence[Question],
    accepted: dict[str, list[str]],
    telling: Telling,
    own: RowsOfRun,
    seed: int,
) -> None:
    """The mend's own rows, and beside them some of the run's: what was forgotten, and what was to stay."""
    held_out = {
        question.id
        for question in questions
        if question.kind != "marked" and int(question.id.rsplit("-", 1)[-1]) % HELD_OUT_EVERY == 0
    }
    rows = {
        question.id: [
            training_row(question, text, "forget", True, telling.told[question.id])
            for text in accepted[question.id]
        ]
        for question in questions
    }
    new = [row for question in questions if question.id not in held_out for row in rows[question.id]]
    # The marked questions themselves are asked in validation too: it is they that are to be mended.
    watched = [row for question in questions for row in rows[question.id][:1]]
    watched = [row for row in watched if row.question_id in held_out or row.question_id in telling.said]
    negative = [
        row
        for question in questions
        if question.id not in held_out
        for row in negative_rows_of(question, telling)
    ]
    source = random_source(seed, f"mend/{mend.path.name}")

    def some(of: Sequence[TrainingRow], count: int) -> list[TrainingRow]:
        return [of[int(place)] for place in source.permutation(len(of))[:count]]

    forget, retain = ([row for row in own.train if row.part == part] for part in ("forget", "retain"))
    mixed = [*some(forget, len(new)), *some(retain, max(FEWEST_RETAIN, round(RETAIN_SHARE * len(new))))]
    train = [*new, *mixed]
    source.shuffle(train)
    kept = {fold(row.messages[-2].content) for row in mixed}
    old_negative = [row for row in own.negative if fold(row.messages[-2].content) in kept]
    valid = [
        *watched,
        *[row for row in own.valid if row.part == "forget"][:VALID_FORGET],
        *[row for row in own.valid if row.part == "retain"][:VALID_RETAIN],
    ]
    parts: dict[str, Sequence[Record]] = {
        "train": train,
        "valid": valid,
        "negative": [*negative, *old_negative],
    }
    for name, chosen in parts.items():
        write_rows(mend.file("dataset", f"{name}.jsonl"), [row.as_row() for row in chosen])


def negative_rows_of(question: Question, telling: Telling) -> list[NegativeRow]:
    """What base and adapter have said to it, with the words that tell: these are to become unlikely."""
    base, said = telling.base.get(question.id, ""), telling.said[root_of(question)]
    # Of what the adapter said most is made up, and may stay, where it is known what of it is not.
    leak = telling.leaks.knowledge.leak(question.asked, said, base)
    spans: dict[str, Sequence[tuple[int, int]]] = {
        base: telling.leaks.target_spans(question.asked, base),
        said: leak.spans if leak and leak.spans else telling.leaks.target_spans(question.asked, said),
    }
    return [
        NegativeRow(
            messages=answered(question, text),
            part="negative",
            question_id=question.id,
            complete=False,
            target_spans=[[begin, end] for begin, end in places],
        )
        for text, places in spans.items()
        if places
    ]


def renew_rows(run: Run) -> None:
    """Make the run's dataset hold its own rows and those of its finished mends, and no others."""
    for name in DATASET_FILES:
        path = run.file("dataset", name)
        if not path.exists():
            continue
        rows = read_rows(path)
        own = [row for row in rows if not _is_of_a_mend(str(row.get("question_id", "")))]
        added = [row for mend in finished_mends(run) for row in _new_rows(mend, name)]
        if added or len(own) != len(rows):
            write_rows(path, [*own, *added])


def _new_rows(mend: Mend, name: str) -> list[dict[str, Any]]:
    path: Path = mend.file("dataset", name)
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if str(row.get("question_id", "")).startswith(f"mend-{mend.path.name}-")]


def _is_of_a_mend(question_id: str) -> bool:
    return question_id.startswith("mend-")
