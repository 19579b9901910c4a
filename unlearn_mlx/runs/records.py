"""What a run's files hold, as types; readers whose complaint names the file, the line and the field."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from unlearn_mlx.config import OLD_NAMES
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.bounded_text import HALF_CHARACTER, Text
from unlearn_mlx.runs.files import checksum, numbered_journal, numbered_rows, read_json

MEND_LINE = "mend or delete the line"
RESTORE = "restore or delete it"
FORMAT = 1  # of a run's directory; a newer one is not touched
LONGEST_FIELD = 80  # characters of a field's name in a complaint


class Record(BaseModel):
    """Something that a file holds. Fields that this version does not know are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def as_row(self) -> dict[str, Any]:
        """The record as its file holds it: with the fields that it was given, and no others."""
        return self.model_dump(exclude_unset=True)


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
AnyEvent = TypeVar("AnyEvent", bound="Event")


def _with_new_names(settings: Any) -> Any:
    is_table = isinstance(settings, dict)
    return {OLD_NAMES.get(key, key): value for key, value in settings.items()} if is_table else settings


Count = Annotated[int, Field(ge=0, lt=2**53)]  # what a chart's numbers hold exactly
Measure = Annotated[float, Field(allow_inf_nan=True)]  # of a training, which may have diverged
Scalar = int | float | str | bool | None
SettingsOfRun = Annotated[dict[str, Scalar], BeforeValidator(_with_new_names)]


class ModelIdentity(Record):
    """Which weights a run was made with."""

    name: str
    revision: str = ""
    sha256: str = ""


class Stage(Record):
    """How far a stage is: "running", "done", "failed" or "cancelled"."""

    state: str
    error: str = ""


class Computation(Record):
    """How a run is computed so that it fits its machine: chosen once, since it shows in the last digits."""

    decode_batch: int = Field(ge=1)  # answers decoded at once, at the most
    part_rows: int | None = Field(ge=1)  # training rows at once, their gradients added; None: a whole step
    checkpointing: bool  # whether activations are computed a second time instead of being kept


class Manifest(Record):
    """What a run was made with, and how far it is."""

    format: int
    topic: str
    model: ModelIdentity
    settings: SettingsOfRun  # as they were: the version that made the run may have had others
    device: str = ""
    versions: dict[str, str] = {}
    chat_template: dict[str, str] = {}  # what was put right in the model's: inference/chat_template.py
    stages: dict[str, Stage]
    proposed: bool = False  # whether the model has proposed what belongs to the topic
    imported_from: str = ""
    reproduces: str = ""  # SHA-256 of the adapter that it makes again, by that adapter's recipe
    shipped_as: str = ""  # the shipped adapter that it was made of
    guardrails: list[str] = []  # what a run that tries them chose
    computation: Computation | None = None  # once the run has begun


def read_manifest(path: Path) -> Manifest:
    """A run's manifest.

    Raises:
        UserError: where it is missing or damaged, or a newer version made the run.
    """
    value = read_json(path)
    # Before anything else of it: a newer one may have other fields.
    newer = value.get("format") if isinstance(value, dict) else None
    if isinstance(newer, int) and newer > FORMAT:
        raise UserError(f"{path.parent} was made by a newer unlearn-mlx: update this one")
    return checked(Manifest, value, f"{path} is damaged", "restore it, or delete the directory")


# -- events.jsonl --


class Event(Record):
    """A line of progress; a kind that this version does not know is one of these and no more."""

    time: float = 0.0  # seconds since 1970
    stage: str
    kind: str


class StageEvent(Event):
    """A stage begins or ends; ``error`` says why it failed."""

    state: str
    error: str = ""


class SampledPair(Record):
    """A question, or one with an answer that was sampled; ``reason`` says why it was rejected."""

    question: str
    answer: str | None = None
    reason: str = ""


class ProgressEvent(Event):
    """How far a stage is; training's has its losses, in nats a token."""

    done: Count
    total: Count
    unit: str
    samples: list[str | SampledPair] = []
    drafted: Count | None = None  # questions written in a round, of which some will be taken
    drafts: Count | None = None  # and how many are to be
    forget_loss: Measure | None = None
    retain_kl: Measure | None = None
    negative_preference: Measure | None = Field(
        default=None, validation_alias=AliasChoices("negative_preference", "avoidance")
    )
    tokens_per_second: Measure | None = None
    seconds_per_step: Measure | None = None
    memory: Count | None = None  # bytes at the peak, as mlx counts in the run's own process
    cache: Count | None = None  # bytes that mlx keeps of freed arrays
    granted: Count | None = None  # bytes that the device has for a model
    trial: str = ""  # of an audit


class MessageEvent(Event):
    """Something to be told."""

    text: str
    needed: Count = 0  # bytes that the run takes, where it begins to load its model


class ValidationEvent(Event):
    """How the adapter did on held-out rows; ``best`` where it is the one that is kept."""

    step: Count
    best: bool = False
    leak_rate: Measure | None = None
    forget_loss: Measure | None = None
    retain_kl: Measure | None = None


class AcceptanceEvent(Event):
    """The share of guarded answers that were accepted, and the others by reason."""

    rate: float
    by_kind: dict[str, float] = {}
    by_reason: dict[str, Count]
    words: list[str] = []


class ErrorEvent(Event):
    """Why the work ended."""

    text: str
    exit_code: int


_EVENTS: dict[str, type[Event]] = {
    "stage": StageEvent,
    "progress": ProgressEvent,
    "message": MessageEvent,
    "validation": ValidationEvent,
    "acceptance": AcceptanceEvent,
    "error": ErrorEvent,
}


def event_of(row: Any) -> Event:
    """The event that a line of events.jsonl holds.

    Raises:
        ValidationError: (a ValueError) where its fields are not those of its kind, or it has none.
    """
    kind = str(row.get("kind")) if isinstance(row, dict) else ""
    return _EVENTS.get(kind, Event).model_validate(row)


def curve(events: Mapping[int, Event], measure: str) -> list[tuple[int, float]]:
    """A measure by step, where it is a number: a training that diverged has others."""
    found = [(step, getattr(event, measure, None)) for step, event in sorted(events.items())]
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def forget_later(by_step: dict[int, AnyEvent], step: int) -> None:
    """Leave out what an earlier training told of steps that the one of now has not come to."""
    for later in [known for known in by_step if known > step]:
        del by_step[later]


def read_events(path: Path) -> list[Event]:
    """All progress in a file, none where there is no file. A line that was cut off is left out.

    Raises:
        UserError: naming the line whose fields are not those of its kind.
    """
    events = []
    for number, row in numbered_journal(path):
        try:
            events.append(event_of(row))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {complaint(error)}; {MEND_LINE}") from None
    return events


# -- rows --


class ChatMessage(Record):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Question(Record):
    """A question: its pattern's name as ``kind``, what it asks about, what was said before it."""

    id: Text
    question: Text
    kind: Text = ""
    subject: Text = ""
    context: list[ChatMessage] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a model is told to answer it."""
        earlier = [{"role": message.role, "content": message.content} for message in self.context]
        return [*earlier, {"role": "user", "content": self.question}]

    @property
    def asked(self) -> str:
        """All that the user has said up to it: an answer that says it again gives nothing away."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")


class RetainQuestion(Question):
    """A question on what must stay; ``part`` is "neighbour" or "general"."""

    part: Text = ""


class RetainRow(RetainQuestion):
    """With what the base itself answers; an answer that is not ``complete`` was cut off."""

    answer: Text
    complete: bool


class BaseAnswer(Record):
    """What the base itself answers to a question on the topic."""

    question_id: Text
    answer: Text


class SampledAnswer(Record):
    """An answer behind the guardrail, accepted or rejected for a reason."""

    question_id: Text
    answer: Text
    accepted: bool
    reason: str = ""
    round: int = 0
    guardrail: str = ""


class ChatRow(Record):
    """A row in mlx-lm's chat format: a question and its answer."""

    messages: list[ChatMessage] = Field(min_length=2)

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as a chat format takes them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


class TrainingRow(ChatRow):
    """An answer to be learned ("forget") or kept ("retain"); where it is not ``complete``, it was cut off."""

    part: Literal["forget", "retain"]
    question_id: str = ""
    complete: bool = True
    base_answer: Text = ""  # what the base says to a question on the topic


class NegativeRow(ChatRow):
    """What the base itself answers, and where that tells: what is to become unlikely.

    ``target_spans`` are [begin, end] in characters of the answer.
    """

    part: Literal["negative", "avoid"] = "negative"  # the latter in earlier versions' files
    question_id: str = ""
    complete: bool = False
    target_spans: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(
        validation_alias=AliasChoices("target_spans", "telling")
    )


def negative_rows_file(dataset: Path) -> Path:
    """Where a dataset's negative rows lie, in earlier versions' runs too."""
    former = dataset / "avoid.jsonl"
    here = dataset / "negative.jsonl"
    return former if former.exists() and not here.exists() else here


# -- readers --


def read_record(path: Path, kind: type[AnyRecord], way_out: str = RESTORE) -> AnyRecord:
    """What a JSON file holds, as a record.

    Raises:
        UserError: where it is missing or damaged, with ``way_out``.
    """
    return checked(kind, read_json(path), f"{path} is damaged", way_out)


def read_records(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """All rows of a JSON-lines file, as records.

    Raises:
        UserError: naming the line, and what is wrong with it.
    """
    return [checked(kind, row, f"{path}, line {number}", MEND_LINE) for number, row in numbered_rows(path)]


def read_known(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """The rows of a journal that are such records and whole; what any other holds is made again.

    Raises:
        UserError: where the file cannot be read.
    """
    rows = []
    for _, row in numbered_journal(path):
        if row.pop("check", None) == checksum(row):
            with suppress(ValidationError):
                rows.append(kind.model_validate(row))
    return rows


def checked(kind: type[AnyRecord], value: Any, where: str, way_out: str) -> AnyRecord:
    """A value as a record.

    Raises:
        UserError: in one line, from ``where`` to ``way_out``.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{where}: {complaint(error)}; {way_out}") from None


def complaint(error: ValidationError) -> str:
    """The first thing that is wrong with a record: which field, and what it should be."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    name = "".join(c if c.isprintable() else "?" for c in field)
    name = f"'{name[:LONGEST_FIELD]}'" if name else "it"
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "string_unicode":
        return f"{name} {HALF_CHARACTER}"
    if first["type"] == "model_type":
        return f"{name} should be a JSON object"
    return f"{name} {first['msg'].removeprefix('Value error, ').removeprefix('Input ')}"
