"""What a user has marked as a leak, kept in the run's ``marks.jsonl``."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError

from unlearn_mlx.runs.bounded_text import Text
from unlearn_mlx.runs.files import append_rows, read_journal
from unlearn_mlx.runs.records import ChatMessage, Record

FILE = "marks.jsonl"
FULL_STRENGTH = 1.0


class Mark(Record):
    """A reply that the user has marked as a leak, or has taken the mark from.

    ``adapter`` is the hash of the adapter that was on, ``context`` what had been said before.
    """

    question: Text
    answer: Text
    marked: bool
    mode: str = "adapter"
    strength: float = FULL_STRENGTH
    temperature: float = 0.0
    time: float = 0.0  # seconds since 1970
    adapter: str = ""
    context: list[ChatMessage] = Field(default=[])

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from all others: the same reply of another adapter is another leak."""
        return self.question, self.answer, self.adapter

    @property
    def can_be_mended(self) -> bool:
        """Whether the adapter said it, and at no less than its full strength: else it has no fault in it."""
        return self.mode != "base" and self.strength >= FULL_STRENGTH


def keep_mark(run_folder: Path, mark: Mark) -> None:
    """Keep one more."""
    append_rows(run_folder / FILE, [mark.as_row()])


def standing_marks(run_folder: Path) -> list[Mark]:
    """The marks that were not taken back, in the order they were made; damaged lines are left out.

    Raises:
        UserError: where the file cannot be read.
    """
    return standing(read_marks(run_folder / FILE))


def standing(marks: Iterable[Mark]) -> list[Mark]:
    """Those that hold: the last one of each reply says whether it does."""
    last: dict[tuple[str, str, str], Mark] = {}
    for mark in marks:
        last[mark.key] = mark
    return [mark for mark in last.values() if mark.marked]


def read_marks(path: Path) -> list[Mark]:
    """Every mark in a file, none where there is no file; a line that is no mark is left out.

    Raises:
        UserError: where the file cannot be read.
    """
    found = []
    for row in read_journal(path):
        with suppress(ValidationError):
            found.append(Mark.model_validate(row))
    return found
