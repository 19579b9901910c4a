"""The folder of one mend: a small run inside the run, with the adapter as it was before."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.mending.marks import FILE, Mark, read_marks, standing_marks
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES, adapter_sha256
from unlearn_mlx.runs.building import building
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.files import write_json, write_rows
from unlearn_mlx.runs.records import ModelIdentity, read_manifest
from unlearn_mlx.runs.run import LOWER_RATE, RESULTS, Run
from unlearn_mlx.topics import Topic

MENDS = "mends"
BEFORE = "before"  # inside a mend: the adapter and its results as they were
RESULT = "result.json"  # the last file that a mend writes
TRAINING_FACTS = ("forget_loss", "retain_kl", "negative_preference")

# Few rows, seen often, at less than the rate that made the adapter.
EPOCHS = 3.0
RATE_SHARE = 0.4
ROUNDS = 8


@dataclass
class Mend(Run):
    """One mend of the run ``of``. Its stages "questions", "answers" and "train" are a run's, in small."""

    of: Run

    @property
    def topic(self) -> Topic:
        """The run's topic."""
        return self.of.topic

    @property
    def before(self) -> Path:
        """The folder of the adapter that it began with."""
        return self.file(BEFORE)

    @property
    def is_finished(self) -> bool:
        """Whether its adapter has taken the old one's place, and everything is written."""
        return self.file(RESULT).exists()

    @property
    def is_in_place(self) -> bool:
        """Whether the run's adapter is its own, as it is for a moment before it is finished, and after."""
        made = adapter_sha256(self.file("adapter"))
        return self.stage_is_done("train") and made == adapter_sha256(self.of.file("adapter"))

    @property
    def gentler_training(self) -> str:
        """The command that trains it with a lower rate."""
        rate = self.settings.learning_rate / LOWER_RATE
        return f"unlearn mend {shell_word(self.of.path)} --learning-rate {rate:g}"

    def marks(self) -> list[Mark]:
        """The marks that it is of."""
        return read_marks(self.file(FILE))

    def event(self, stage: str, kind: str, **facts: Any) -> None:
        """Note progress here, and in the run as progress of its mending, without the curves of a training."""
        super().event(stage, kind, **facts)
        if kind == "progress":
            told = {name: value for name, value in facts.items() if name not in TRAINING_FACTS}
            self.of.event("mend", kind, **told)
        elif kind == "message":
            self.of.event("mend", kind, **facts)


def mends_of(run: Run) -> list[Mend]:
    """The mends of a run, the first one first."""
    manifests = sorted(run.file(MENDS).glob("[0-9]*/manifest.json"))
    return [Mend(path.parent, read_manifest(path), run) for path in manifests]


def finished_mends(run: Run) -> list[Mend]:
    """Those whose adapter has taken its place, the first one first."""
    return [mend for mend in mends_of(run) if mend.is_finished]


def open_marks(run: Run) -> list[Mark]:
    """The marks that a mend can be made of and none was."""
    mended = {mark.key for mend in finished_mends(run) for mark in mend.marks()}
    return [mark for mark in standing_marks(run.path) if mark.can_be_mended and mark.key not in mended]


def mend_under_way(run: Run) -> Mend | None:
    """The mend that was begun and cut off, where it is still of these marks and this adapter.

    One whose adapter is in place already is to be finished in any case.
    """
    begun = [mend for mend in mends_of(run) if not mend.is_finished]
    if not begun:
        return None
    mend = begun[-1]
    if mend.is_in_place:
        return mend
    is_of_this = adapter_sha256(mend.before) == adapter_sha256(run.file("adapter"))
    is_of_these = {mark.key for mark in mend.marks()} == {mark.key for mark in open_marks(run)}
    return mend if is_of_this and is_of_these else None


def begin_mend(run: Run, learning_rate: float | None = None) -> Mend:
    """Go on with the mend that was cut off, or begin one of all marks that none was made of.

    ``learning_rate`` is another than would be taken, where it is not None.

    Raises:
        UserError: where nothing is marked, the run has no adapter, or the rate is out of range.
    """
    adapter = run.finished_adapter()
    marks = open_marks(run)
    if not marks:
        raise UserError(f"{run.path}: {what_is_marked(run)}")
    mend = mend_under_way(run)
    if mend is None:
        drop_unfinished(run)
        mend = _new_mend(run, adapter, marks)
    rate = learning_rate or mend.settings.learning_rate
    settings = make_settings(**{**mend.settings.model_dump(), "learning_rate": rate})
    if settings != mend.settings:
        mend.manifest.settings = settings.model_dump()
        mend.manifest.stages.pop("train", None)
        mend.save_manifest()
    return mend


def what_is_marked(run: Run) -> str:
    """Why there is nothing to mend, and how something comes to be marked."""
    standing = standing_marks(run.path)
    if not standing:
        why = "nothing is marked as a leak"
    elif not any(mark.can_be_mended for mark in standing):
        why = "what is marked was said by the base, or with less than the adapter's full strength"
    else:
        why = "every marked answer was mended already"
    return f"{why}: in 'unlearn chat {shell_word(run.path)}' say /leak after an answer that leaks"


def drop_unfinished(run: Run) -> int:
    """Delete mends that were begun and not finished. Returns how many there were."""
    begun = [mend for mend in mends_of(run) if not mend.is_finished]
    for mend in begun:
        shutil.rmtree(mend.path)
    return len(begun)


def _new_mend(run: Run, adapter: Path, marks: list[Mark]) -> Mend:
    """Make the folder, whole or not at all."""
    settings = run.settings.model_copy(
        update={
            "epochs": EPOCHS,
            "learning_rate": run.settings.learning_rate * RATE_SHARE,
            "rounds": max(ROUNDS, run.settings.rounds),
            "answers": max(2, run.settings.answers),
            "validations": 2,
        }
    )
    numbers = [int(mend.path.name) for mend in mends_of(run) if mend.path.name.isdecimal()]
    folder = run.file(MENDS, f"{max(numbers, default=0) + 1:02d}")
    with building(folder) as made:
        (made / BEFORE).mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter / name, made / BEFORE / name)
        for name in (*RESULTS, "manifest.json"):
            if run.file(name).exists():
                shutil.copyfile(run.file(name), made / BEFORE / name)
        write_rows(made / FILE, [mark.as_row() for mark in marks])
        known = run.manifest
        manifest = known.model_copy(
            update={
                "model": ModelIdentity(**known.model.as_row()),
                "settings": settings.model_dump(),
                "stages": {},
            }
        )
        write_json(made / "manifest.json", manifest.as_row())
    return Mend(folder, read_manifest(folder / "manifest.json"), run)
