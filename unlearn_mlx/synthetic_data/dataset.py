"""Training rows in mlx-lm's chat format, so that ``mlx_lm.lora --data`` takes them as they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.seeding import random_source

VALID_EVERY = 12  # of the questions, one in so many is kept for validation


def row(question: dict[str, Any], answer: str, part: str, complete: bool, base: str = "") -> dict[str, Any]:
    """One row. ``part`` is "forget", "retain" or "negative"; an incomplete answer's end is no target."""
    return {
        "messages": [
            {"role": "user", "content": question["question"]},
            {"role": "assistant", "content": answer},
        ],
        "part": part,
        "question_id": question["id"],
        "complete": complete,
        **({"base_answer": base} if base else {}),
    }


def write_dataset(
    folder: Path,
    questions: Sequence[dict[str, Any]],
    answers: Iterable[dict[str, Any]],
    base: dict[str, str],
    telling: dict[str, list[tuple[int, int]]],
    retain: Sequence[dict[str, Any]],
    seed: int,
) -> None:
    """Write train.jsonl and valid.jsonl, split by question, and negative.jsonl.

    The last holds what the base itself answers to the training questions, and where that tells:
    ``telling`` maps a question's id to the words that are to become unlikely: where each begins and
    ends in the base's answer.
    """
    by_id = {question["id"]: question for question in questions}
    rows = [
        row(
            by_id[answer["question_id"]],
            answer["answer"],
            "forget",
            True,
            base.get(answer["question_id"], ""),
        )
        for answer in answers
        if answer["accepted"] and answer["question_id"] in by_id
    ]
    rows += [row(item, item["answer"], "retain", item["complete"]) for item in retain]
    negative = [
        {**row(by_id[id], base[id], "negative", False), "target_spans": spans}
        for id, spans in telling.items()
        if spans
    ]
    order = [*by_id, *(item["id"] for item in retain)]
    held_out = set(order[VALID_EVERY - 1 :: VALID_EVERY])
    valid = [entry for entry in rows if entry["question_id"] in held_out]
    train = [entry for entry in rows if entry["question_id"] not in held_out]
    random_source(seed, "rows").shuffle(train)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "valid.jsonl", valid)
    write_rows(
        folder / "negative.jsonl", [entry for entry in negative if entry["question_id"] not in held_out]
    )
