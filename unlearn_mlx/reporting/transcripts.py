"""What base and adapter said, side by side: leaks marked, and counted by form of question and entity."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unlearn_mlx.evaluation.forms import FORMS
from unlearn_mlx.evaluation.probes import FORM_OF_KIND
from unlearn_mlx.evaluation.records import Outcome, ScoredProbe
from unlearn_mlx.text.words import fold


@dataclass(frozen=True)
class MarkedAnswer:
    """An answer in pieces, each with whether it shows the knowledge, and what the answer was taken for."""

    pieces: list[tuple[str, bool]]
    label: str
    shows: bool


@dataclass(frozen=True)
class Transcript:
    """A probe and what both answered; ``choices`` are those of a multiple choice."""

    question: str
    expected: str
    choices: Sequence[str]
    base: list[MarkedAnswer]
    adapter: list[MarkedAnswer]


@dataclass(frozen=True)
class Cell:
    """The probes of one form on one entity; ``base`` and ``adapter`` count those that show the knowledge.

    ``worse`` is 0 to 1, how bad that is: on the topic what still shows, elsewhere what was lost.
    """

    anchor: str
    entity: str
    form: str
    base: int
    adapter: int
    count: int
    worse: float
    transcripts: list[Transcript]


@dataclass(frozen=True)
class HeatMap:
    """The cells of a scope: a row an entity, a column a form, None where there is no probe."""

    scope: str
    forms: list[str]
    rows: list[tuple[str, list[Cell | None]]]

    @property
    def cells(self) -> list[Cell]:
        """The cells that have probes, row by row."""
        return [cell for _, row in self.rows for cell in row if cell]


def form_of(probe: ScoredProbe) -> str:
    """A probe's form of question."""
    return probe.form or FORM_OF_KIND[probe.kind]


def heat_map(probes: Iterable[ScoredProbe], scope: str) -> HeatMap:
    """The map of a scope, the worst entity first."""
    groups: dict[tuple[str, str], list[ScoredProbe]] = {}
    for probe in probes:
        if probe.scope == scope and probe.shows("adapter") is not None:
            groups.setdefault((probe.entity, form_of(probe)), []).append(probe)
    found = dict.fromkeys(form for _, form in groups)
    forms = [form for form in FORMS if form in found] + [form for form in found if form not in FORMS]
    badness: dict[str, list[float]] = {}
    for (entity, _), group in groups.items():
        badness.setdefault(entity, []).extend([_badness(group)] * len(group))
    entities = sorted(badness, key=lambda entity: (-sum(badness[entity]) / len(badness[entity]), entity))
    rows: list[tuple[str, list[Cell | None]]] = []
    for number, entity in enumerate(entities):
        row: list[Cell | None] = []
        for column, form in enumerate(forms):
            group = groups.get((entity, form), [])
            row.append(_cell(f"{scope}-{number}-{column}", entity, form, group) if group else None)
        rows.append((entity, row))
    return HeatMap(scope, forms, rows)


def _cell(anchor: str, entity: str, form: str, group: Sequence[ScoredProbe]) -> Cell:
    return Cell(
        anchor,
        entity,
        form,
        _count(group, "base"),
        _count(group, "adapter"),
        len(group),
        _badness(group),
        [transcript(probe) for probe in group],
    )


def _count(group: Iterable[ScoredProbe], whose: str) -> int:
    return sum(bool(probe.shows(whose)) for probe in group)


def _badness(group: Sequence[ScoredProbe]) -> float:
    adapter = _count(group, "adapter")
    if group[0].scope == "topic":
        return adapter / len(group)
    return max(0, _count(group, "base") - adapter) / len(group)


def transcript(probe: ScoredProbe) -> Transcript:
    """What both answered to a probe."""
    choices = probe.choices if probe.kind == "choice" else ()
    return Transcript(
        probe.question, probe.answer, choices, _answers(probe, probe.base), _answers(probe, probe.adapter)
    )


def _answers(probe: ScoredProbe, outcome: Outcome) -> list[MarkedAnswer]:
    if probe.kind == "choice":
        if outcome.chosen is None:
            return []
        right = bool(outcome.right)
        return [MarkedAnswer([(outcome.chosen, right)], "right" if right else "wrong", right)]
    labels = outcome.labels or [""] * len(outcome.answers)
    return [
        MarkedAnswer(marked(text, probe.leak), label, leaks)
        for text, label, leaks in zip(outcome.answers, labels, outcome.leaks, strict=True)
    ]


def marked(text: str, patterns: Iterable[str]) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether a pattern matched it; together they are the text.

    The patterns are for folded text, which can be longer or shorter than what it was folded from.
    """
    text = unicodedata.normalize("NFC", text)
    folded, source = "", []
    for position, character in enumerate(text):
        piece = fold(character)
        folded += piece
        source += [position] * len(piece)
    hit = [False] * len(text)
    for pattern in patterns:
        for match in re.finditer(pattern, folded, re.IGNORECASE):
            if match.end() > match.start():
                first, last = source[match.start()], source[match.end() - 1]
                hit[first : last + 1] = [True] * (last + 1 - first)
    pieces: list[tuple[str, bool]] = []
    for character, is_hit in zip(text, hit, strict=True):
        if pieces and pieces[-1][1] == is_hit:
            pieces[-1] = (pieces[-1][0] + character, is_hit)
        else:
            pieces.append((character, is_hit))
    return pieces
