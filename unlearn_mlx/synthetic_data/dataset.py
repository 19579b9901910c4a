"""Training rows in mlx-lm's chat format, so that ``mlx_lm.lora --data`` takes them as they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unlearn_mlx.files import write_rows
from unlearn_mlx.language_model.generation import random_source

VALID_EVERY = 12  # of the questions, one in so many is kept for validation


def row(question: dict[str, Any], answer: str, part: str, complete: bool, base: str = "") -> dict[str, Any]:
    """One row. ``part`` is "forget" or "retain"; an incomplete answer's end is no target of training."""
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
    retain: Sequence[dict[str, Any]],
    seed: int,
) -> tuple[int, int]:
    """Write train.jsonl and valid.jsonl, split by question. Returns their numbers of rows."""
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
    order = {id: number for number, id in enumerate([*by_id, *(item["id"] for item in retain)])}
    valid = [entry for entry in rows if order[entry["question_id"]] % VALID_EVERY == VALID_EVERY - 1]
    train = [entry for entry in rows if order[entry["question_id"]] % VALID_EVERY != VALID_EVERY - 1]
    random_source(seed, "rows").shuffle(train)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "valid.jsonl", valid)
    return len(train), len(valid)
