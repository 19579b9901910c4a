"""Probes: hand-written facts, or questions whose answer the base itself knows."""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.bounded_text import Text
from unlearn_mlx.runs.records import Record, read_records
from unlearn_mlx.topics import Topic

QUESTION_ANSWER, FILL_IN, MULTIPLE_CHOICE = "question-answer", "fill-in-the-blank", "multiple choice"
GENERAL, CONTROL = "general", "control"  # files of probes that belong to no topic
FORM_OF_KIND = {"open": QUESTION_ANSWER, "cloze": FILL_IN, "choice": MULTIPLE_CHOICE}


@dataclass(frozen=True)
class Probe:
    """One question of the evaluation.

    ``kind`` is how it is scored: "open" (answered freely), "choice" (the likeliest of four) or
    "cloze" (a sentence to be finished, both ways). ``form`` is how it is asked, one of RWKU's
    (Jin et al. 2024). ``scope`` is "topic", "neighbour" or "general".
    """

    id: str
    scope: str
    kind: str
    entity: str
    question: str
    answer: str
    leak: tuple[str, ...] = ()  # regular expressions; one that matches shows the knowledge
    choices: tuple[str, ...] = field(default=())
    form: str = ""  # what its kind says where none is given
    start: str = ""  # what is put in the assistant's mouth

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", self.form or FORM_OF_KIND[self.kind])


def _pattern(text: str) -> str:
    try:
        with warnings.catch_warnings():  # of what later versions of Python will read in another way
            warnings.simplefilter("error", FutureWarning)
            re.compile(text)
    except (re.error, FutureWarning, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class ProbeRow(Record):
    """A probe as a file holds it; the sentence of a cloze is called "text" there."""

    id: str
    scope: str
    kind: Literal["open", "choice", "cloze"]
    entity: str = ""
    question: str = Field(default="", validation_alias=AliasChoices("question", "text"))
    answer: str
    leak: list[Pattern] = Field(default=[])
    choices: list[str] = Field(default=[])
    form: str = ""
    start: str = ""

    def probe(self) -> Probe:
        """The probe as it is asked."""
        return Probe(
            self.id,
            self.scope,
            self.kind,
            self.entity,
            self.question,
            self.answer,
            tuple(self.leak),
            tuple(self.choices),
            self.form,
            self.start,
        )


class AskedProbe(ProbeRow):
    """A probe that a model is to be asked."""

    question: Text = Field(min_length=1, validation_alias=AliasChoices("question", "text"))
    answer: Text
    choices: list[Text] = Field(default=[])
    start: Text = ""

    @model_validator(mode="after")
    def _can_be_scored(self) -> "AskedProbe":
        if self.kind == "open" and not self.leak:
            raise ValueError("lacks 'leak': an open question is scored by patterns")
        if self.kind != "open" and self.answer not in self.choices:
            raise ValueError("lacks 'choices' with the answer among them")
        return self


def probe_files(topic: Topic) -> list[Path]:
    """The hand-written probes for a topic: its own, if there are any, and the general ones."""
    own = [_own_file(topic)] if has_written_probes(topic) else []
    return [*own, DATA / "probes" / f"{GENERAL}.jsonl"]


def has_written_probes(topic: Topic) -> bool:
    """Whether somebody wrote probes for the topic."""
    # A topic may be called "General": the probes of that name are not about it.
    return topic.slug not in (GENERAL, CONTROL) and _own_file(topic).exists()


def _own_file(topic: Topic) -> Path:
    return DATA / "probes" / f"{topic.slug}.jsonl"


def read_probes(path: Path) -> list[Probe]:
    """The probes of a file.

    Raises:
        UserError: where a line is damaged.
    """
    return [row.probe() for row in read_records(path, AskedProbe)]


def even_share(probes: Sequence[Probe], most: int) -> list[Probe]:
    """About ``most`` of the probes, in order: the same share of each scope, kind and form, one at least."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for probe in probes:
        groups[probe.scope, probe.kind, probe.form].append(probe.id)
    kept: set[str] = set()
    for ids in groups.values():
        count = min(len(ids), math.ceil(len(ids) * most / len(probes)))
        kept.update(ids[number * len(ids) // count] for number in range(count))
    return [probe for probe in probes if probe.id in kept]


def fact_of(probe_id: str) -> str:
    """The id of the plain question that a probe asks in another form; its own where it is no such form."""
    return probe_id.partition("/")[0]


def row_of(probe: Probe) -> dict[str, Any]:
    """A probe's fields as a file can hold them."""
    return {**vars(probe), "leak": list(probe.leak), "choices": list(probe.choices)}


def write_row(probe: Probe) -> dict[str, Any]:
    """A probe as its line in a file of probes, where the sentence of a cloze is called "text"."""
    row = row_of(probe)
    if probe.kind == "cloze":
        row["text"] = row.pop("question")
    return row
