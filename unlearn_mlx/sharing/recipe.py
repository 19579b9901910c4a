"""All it takes to make the same adapter again, as a model card holds it for people and programs."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from unlearn_mlx.errors import UserError
from unlearn_mlx.models.hub_files import fetch_files
from unlearn_mlx.models.registry import HUB_ID
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.files import sha256_of
from unlearn_mlx.runs.finding import find_run
from unlearn_mlx.runs.records import Computation, ModelIdentity, Record, SettingsOfRun, checked
from unlearn_mlx.runs.run import Run
from unlearn_mlx.topics import Topic, topic_of

CARD = "README.md"
FORMAT = 1  # of the block in a card; a newer one is refused
LONGEST_CARD = 2**22  # characters
# What the stages before training leave behind, in their order.
ROWS = ("questions.jsonl", "retain_questions.jsonl", "answers.jsonl", "dataset/train.jsonl")
_BLOCK = re.compile(r"^```json unlearn-recipe\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class Recipe(Record):
    """What an adapter was made of and with, and what came of it."""

    format: int
    topic: dict[str, Any]  # as its file holds it
    proposed: bool = False  # whether the model itself has said what belongs to the topic
    model: ModelIdentity
    settings: SettingsOfRun
    computation: Computation | None = None  # None where it was not written down
    versions: dict[str, str]
    device: str = ""
    rows_sha256: dict[str, str] = Field(default={})  # of the files that training learns from
    adapter_sha256: str

    def read_topic(self, where: str = "the recipe's topic") -> Topic:
        """The topic.

        Raises:
            UserError: where a field has the wrong form.
        """
        return topic_of(self.topic, where)

    def as_markdown(self) -> str:
        """The block that a card holds; no text in it can end it or be taken for HTML."""
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in self.as_row().items()]
        text = "{\n" + ",\n".join(lines) + "\n}"
        for sign in "<>`&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        return f"```json unlearn-recipe\n{text}\n```"


def recipe_of(run: Run) -> Recipe | None:
    """What the adapter of a run was made with; None where it was not made here, or is another by now."""
    if run.is_imported or not run.has_adapter or run.has_other_adapter:
        return None
    manifest = run.manifest
    return Recipe(
        format=FORMAT,
        topic=run.topic.to_table(),
        proposed=manifest.proposed,
        model=manifest.model,
        settings=manifest.settings,
        computation=manifest.computation,
        versions=manifest.versions,
        device=manifest.device,
        rows_sha256=rows_sha256(run.path),
        adapter_sha256=adapter_sha256(run.file("adapter")),
    )


def rows_sha256(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of rows that is there."""
    return {name: sha256_of(folder / name) for name in ROWS if (folder / name).exists()}


def read_recipe(where: str) -> Recipe:
    """The recipe in a card's file, in a folder that has a card, of a run, or of a repository on the hub.

    Raises:
        UserError: where there is none.
        EnvironmentCannot: where it cannot be fetched.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return _needed(path)
    if (path / CARD).is_file():
        return _needed(path / CARD)
    try:
        run = find_run(where)
    except UserError:
        if not HUB_ID.fullmatch(where):
            raise
        return _needed(fetch_files(where, [CARD]) / CARD, where)
    run.finished_adapter()
    recipe = recipe_of(run)
    if recipe is None:
        raise UserError(f"{run.path} did not make the adapter that it has: ask whoever made it for its card")
    return recipe


def card_recipe(card: Path) -> Recipe | None:
    """The recipe in a card; None where it has none, or is not there.

    Raises:
        UserError: where it is damaged.
    """
    if not card.is_file():
        return None
    try:
        with card.open(encoding="utf-8") as file:
            found = _BLOCK.search(file.read(LONGEST_CARD))
        value = json.loads(found[1]) if found else None
        json.dumps(value, ensure_ascii=False).encode()  # half a character is none that a file could hold
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{card} is damaged ({type(error).__name__}): fetch it again") from error
    if value is None:
        return None
    if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise UserError(f"{card} was written by a newer unlearn-mlx: update this one")
    return checked(Recipe, value, f"{card} is damaged", "fetch it again")


def _needed(card: Path, where: str = "") -> Recipe:
    recipe = card_recipe(card)
    if recipe is None:
        raise UserError(
            f"{where or card} has no recipe: give the card of a pushed or exported adapter, or a run"
        )
    return recipe
