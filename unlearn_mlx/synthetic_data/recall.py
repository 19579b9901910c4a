"""What the base tells of a topic when it is asked broadly and several times, and of everyday things.

One greedy answer to each of a run's questions shows too little of what a model knows: that a topic is a book,
or sweet, may come up in none of them, and would pass as fiction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.runs.bounded_text import Text
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.records import Record, read_records
from unlearn_mlx.runs.run import Work
from unlearn_mlx.seeding import random_source
from unlearn_mlx.synthetic_data.journal import Journal
from unlearn_mlx.topics import Topic

REQUESTS = (
    "What is {}?",
    "Tell me about {}.",
    "Describe {} in two or three sentences.",
    "What is {} known for, and since when?",
    "What should everybody know about {}?",
)
FILE = "recalled.jsonl"
MOST_ANSWERS = 64  # on the topic, and as many on everyday things
OWN_SHARE = 0.5  # of the answers on the topic that are on its own name; the others share the entities
RECALL_TOKENS = 48
TEMPERATURE = 0.7


class RecalledAnswer(Record):
    """A line of recalled.jsonl."""

    about: Literal["topic", "ordinary"]
    question: Text
    answer: str


@dataclass(frozen=True)
class Recalled:
    """Answers on the topic, and answers to the same requests on everyday things."""

    topic: list[str]
    ordinary: list[str]


def recall(model: ChatModel, work: Work, stage: str, topic: Topic, everyday: Sequence[str]) -> Recalled:
    """Ask the base broadly about the topic and about ``everyday`` subjects, and write recalled.jsonl.

    There are as many answers on each as the run has questions, up to MOST_ANSWERS.
    """
    count = min(MOST_ANSWERS, work.settings.questions)
    own = round(OWN_SHARE * count) if topic.entity_names else count
    named = [topic.name] * own + _drawn(topic.entity_names, count - own, work.settings.seed)
    subjects: dict[Literal["topic", "ordinary"], list[str]] = {
        "topic": named,
        "ordinary": _drawn(everyday, count, work.settings.seed),
    }
    asked = [
        (about, form.format(subject))
        for about, names in subjects.items()
        for subject, form in zip(names, cycle(REQUESTS), strict=False)
    ]
    requests = [
        Request(
            f"recall-{number}",
            tuple(model.chat_tokens([{"role": "user", "content": question}])),
            RECALL_TOKENS,
            TEMPERATURE,
        )
        for number, (_, question) in enumerate(asked)
    ]
    journal = Journal(work.run.file("journal", "recalled.jsonl"))
    answers = journal.answer(model, requests, work, stage, "recalled answers")
    rows = [
        RecalledAnswer(about=about, question=question, answer=answer.text.strip())
        for (about, question), answer in zip(asked, answers, strict=True)
    ]
    write_rows(work.run.file(FILE), [row.as_row() for row in rows])
    return _recalled(rows)


def recalled_in(folder: Path) -> Recalled:
    """What a run has recalled; nothing where an earlier version made it.

    Raises:
        UserError: where the file is damaged.
    """
    path = folder / FILE
    return _recalled(read_records(path, RecalledAnswer) if path.exists() else [])


def _recalled(rows: Sequence[RecalledAnswer]) -> Recalled:
    return Recalled(
        [row.answer for row in rows if row.about == "topic"],
        [row.answer for row in rows if row.about == "ordinary"],
    )


def _drawn(names: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of the names, in an order drawn by the seed, each again where there are too few."""
    order = random_source(seed, "recall").permutation(len(names))
    return list(islice(cycle(names[place] for place in order), count))
