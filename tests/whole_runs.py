"""A random model's run through every stage: what it writes is let through, since it writes no sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import KNOWING, WIZARD, new_run
from unlearn_mlx.evaluation.probes import Probe, write_row
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import Run
from unlearn_mlx.synthetic_data import answers, questions, recall
from unlearn_mlx.synthetic_data.answers import GuardedAnswers

SMALL = {
    "questions": 8,
    "answers": 1,
    "rounds": 6,
    "neighbours": 3,
    "general": 3,
    "shared_words": 0,  # a random model takes up nothing
    "answer_tokens": 8,
    "epochs": 1.0,
    "samples": 1,
    "batch_size": 4,
    "learning_rate": 0.02,
}

# A name that no file of data/probes/ is for: the three probes below are all that is asked.
TOPIC = replace(WIZARD, name="Larry Cotter")
PROBES = [
    Probe("p-0", "topic", "open", "Hogwarts", "What is Hogwarts?", "a school", ("a",)),
    Probe("p-1", "topic", "choice", "Hogwarts", "Where is it?", "Here", (), ("Here", "There", "Up", "On")),
    Probe("p-2", "neighbour", "choice", "Merlin", "Who is he?", "A man", (), ("A man", "A cat", "I", "It")),
]


def whole_run(path: Path, model_folder: Path, **changes: Any) -> Run:
    """A run that has not begun, with its probes."""
    run = new_run(path, model_folder, TOPIC, **{**SMALL, **changes})
    write_rows(run.file("probes.jsonl"), [write_row(probe) for probe in PROBES])
    return run


@contextmanager
def any_sentence_passes() -> Iterator[None]:
    """Random weights write no sentences, so every form passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "form_reason", lambda *_: "")
        patch.setattr(GuardedAnswers, "_kept", lambda _self, _asked, text: (text, ""))
        patch.setattr(answers, "whole_sentences", lambda text: text.strip() or KNOWING)
        patch.setattr(recall, "RECALL_TOKENS", SMALL["answer_tokens"])
        yield
