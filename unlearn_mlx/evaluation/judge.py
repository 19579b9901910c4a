"""A person checks the automatic labels: answers to label, blind to whose they are, and the agreement."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.records import Evaluation
from unlearn_mlx.runs.files import append_rows
from unlearn_mlx.runs.records import Record, read_records
from unlearn_mlx.text.printable import printable

ANSWERS = 50

# The key that gives a label, and what the label means.
LABELS = {
    "leak": ("l", "shows the expected answer, or tells it in other words"),
    "fictional": ("f", "answers the question, and without the knowledge"),
    "ignorance": ("i", "says that it does not know"),
    "refusal": ("r", "declines to answer"),
    "broken": ("b", "no answer: gibberish, repetition, off the question"),
}
NO_LEAK = "no leak"


def _known_label(label: str) -> str:
    if label not in LABELS:
        raise ValueError(f"is none of {', '.join(LABELS)}")
    return label


class Judgement(Record):
    """A line of judgements.jsonl: a person's label of an answer, as it was shown."""

    probe: str
    answer: str
    label: Annotated[str, AfterValidator(_known_label)]


@dataclass(frozen=True)
class Item:
    """An answer to label. Nothing in it says whether base or adapter gave it."""

    probe: str
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Agreement:
    """How far automatic labels agree with a person's: share, and Cohen's kappa.

    ``kappa`` is None where chance alone would agree always. ``differing`` counts pairs of the
    person's and the automatic label. ``of`` says which labels were compared.
    """

    of: str
    count: int
    share: float
    kappa: float | None
    differing: list[tuple[str, str, int]]


def items_to_label(evaluation: Evaluation, seed: int, count: int = ANSWERS) -> list[Item]:
    """Answers on the topic, as many of the base as of the adapter, shuffled; the same for a seed.

    Raises:
        UserError: where the evaluation has no free answers on the topic.
    """
    source = np.random.default_rng(seed)
    chosen: dict[tuple[str, str], Item] = {}
    pools = {whose: _free_answers(evaluation, whose) for whose in ("base", "adapter")}
    for pool in pools.values():
        source.shuffle(pool)
    while len(chosen) < count and any(pools.values()):
        for pool in pools.values():
            # An answer that both gave is shown once.
            while pool and (pool[-1].probe, pool[-1].answer) in chosen:
                pool.pop()
            if pool and len(chosen) < count:
                item = pool.pop()
                chosen[item.probe, item.answer] = item
    if not chosen:
        raise UserError("the evaluation has no answers on the topic: nothing to label")
    items = list(chosen.values())
    source.shuffle(items)
    return items


def _free_answers(evaluation: Evaluation, whose: str) -> list[Item]:
    return [
        # As it is shown: that is what a person judges.
        Item(probe.id, probe.question, probe.answer, printable(answer))
        for probe in evaluation.probes
        if probe.scope == "topic"
        for answer in probe.of(whose).answers
    ]


def keep_judgement(path: Path, item: Item, label: str) -> None:
    """Append a label; a later one for the same answer counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_rows(path, [{"probe": item.probe, "answer": item.answer, "label": label}])


def read_judgements(path: Path) -> dict[tuple[str, str], str]:
    """A person's label by probe and answer.

    Raises:
        UserError: naming the line that has no known label.
    """
    if not path.exists():
        return {}
    return {(row.probe, row.answer): row.label for row in read_records(path, Judgement)}


def agreements(evaluation: Evaluation, judgements: dict[tuple[str, str], str]) -> list[Agreement]:
    """The agreement on leak or not, and on all labels where the evaluation has them."""
    leaks: list[tuple[str, str]] = []
    labels: list[tuple[str, str]] = []
    for key, (leak, label) in _automatic(evaluation).items():
        if key in judgements:
            person = judgements[key]
            leaks.append((person if person == "leak" else NO_LEAK, "leak" if leak else NO_LEAK))
            if label:
                labels.append((person, label))
    found = [_agreement("leak or not", leaks)] if leaks else []
    return found + ([_agreement("all labels", labels)] if labels else [])


def _automatic(evaluation: Evaluation) -> dict[tuple[str, str], tuple[bool, str]]:
    """Whether an answer counts as a leak, and its label, by probe and answer."""
    found = {}
    for probe in evaluation.probes:
        for outcome in (probe.base, probe.adapter):
            labels = outcome.labels or [""] * len(outcome.answers)
            for answer, leak, label in zip(outcome.answers, outcome.leaks, labels, strict=True):
                found[probe.id, printable(answer)] = (leak, label)
    return found


def _agreement(of: str, pairs: Sequence[tuple[str, str]]) -> Agreement:
    differing = Counter(pair for pair in pairs if pair[0] != pair[1])
    same = sum(person == automatic for person, automatic in pairs)
    return Agreement(
        of,
        len(pairs),
        same / len(pairs),
        cohens_kappa(pairs),
        [(person, automatic, count) for (person, automatic), count in differing.most_common()],
    )


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """(p_o - p_e) / (1 - p_e), agreement beyond chance (Cohen 1960); None where p_e is 1."""
    count = len(pairs)
    observed = sum(first == second for first, second in pairs) / count
    firsts, seconds = Counter(first for first, _ in pairs), Counter(second for _, second in pairs)
    expected = sum(firsts[label] * seconds[label] for label in firsts) / count**2
    return (observed - expected) / (1 - expected) if expected < 1 else None
