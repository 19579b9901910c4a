"""Making an adapter again from its recipe, and holding the one that comes out against it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.models.hub import fetch
from unlearn_mlx.models.registry import HUB_ID, ModelSource, named_model, resolve_model
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.records import checked
from unlearn_mlx.runs.run import RUNS, Run, create_run, package_versions
from unlearn_mlx.sharing.recipe import Recipe, rows_sha256
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import load_topic

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Outcome:
    """Whether the same bytes came out. ``differs_from`` is the first file that is another, in order."""

    sha256: str
    differs_from: str = ""

    @property
    def is_same(self) -> bool:
        """Whether the adapter has the recipe's bytes."""
        return not self.differs_from


def reproduction(recipe: Recipe, model_name: str | None, out: Path | None) -> Run:
    """A run that makes the adapter again: a new one, or the one that was begun.

    ``model_name`` is where the base lies here; None takes the recipe's, at its revision.

    Raises:
        UserError: for a recipe that this version cannot follow, a base with other weights, or a directory
            in use.
        EnvironmentCannot: where the base cannot be had.
    """
    topic = recipe.read_topic()
    settings = checked(Settings, recipe.settings, "the recipe's settings", "update unlearn-mlx")
    path = out or RUNS / f"{topic.slug}-reproduced"
    source = _base(recipe, model_name)
    elsewhere = "use '--out' for another directory, or delete this one"
    if (path / "topic.toml").exists() and load_topic(path / "topic.toml") != topic:
        raise UserError(f"{path} has another topic file than the recipe: {elsewhere}")
    is_new = not (path / "manifest.json").exists()
    run = create_run(path, topic, source.identity, settings, current_device().label)
    if is_new:
        with run.writing():
            run.manifest.reproduces = recipe.adapter_sha256
            run.manifest.computation = recipe.computation
            run.manifest.proposed = recipe.proposed
            run.save_manifest()
    if run.manifest.reproduces != recipe.adapter_sha256:
        raise UserError(f"{path} is another run: {elsewhere}")
    return run


def differences(recipe: Recipe) -> list[str]:
    """In what this machine, and what is installed, differ from what the adapter was made with."""
    here = {**package_versions(), "device": current_device().label}
    there = {**recipe.versions, **({"device": recipe.device} if recipe.device else {})}
    known = [name for name in here if name in there or name != "device"]
    found = [
        f"{name} was {one_line(there.get(name, 'not told'))[:80]}, here {here[name]}"
        for name in known
        if there.get(name) != here[name]
    ]
    usual = make_settings().model_dump()
    lacking = [name for name in usual if name not in recipe.settings]
    found += [f"--{name.replace('_', '-')} is not told, {usual[name]} here" for name in lacking]
    if recipe.computation is None:
        found.append("how it was computed is not told, as fits this machine here")
    return found


def outcome(recipe: Recipe, run: Run) -> Outcome:
    """Hold what a run has made against the recipe."""
    made = adapter_sha256(run.file("adapter"))
    if made == recipe.adapter_sha256:
        return Outcome(made)
    rows = rows_sha256(run.path)
    changed = [name for name, known in recipe.rows_sha256.items() if rows.get(name) != known]
    return Outcome(made, one_line(changed[0]) if changed else "adapter")


def _base(recipe: Recipe, model_name: str | None) -> ModelSource:
    """The recipe's base model.

    Raises:
        UserError: where it has other weights, or is not found.
    """
    known = recipe.model
    source = resolve_model(model_name) if model_name else _as_told(known.name, known.revision)
    if source.weights_sha256 != known.sha256:
        raise UserError(
            f"{source.name} has other weights than the adapter was made on (SHA-256 "
            f"{source.weights_sha256[:12]}, not {one_line(known.sha256)[:12]}): "
            "give the folder that has them with '--model'"
        )
    return source


def _as_told(name: str, revision: str) -> ModelSource:
    """A model at the revision that a recipe names, where the hub has it.

    Raises:
        UserError: where the name is neither the hub's nor a folder here.
    """
    named = named_model(name)
    if os.path.isdir(os.path.expanduser(name)) or (named and named.repository is None):
        return resolve_model(name)
    repository = (named.repository if named else None) or name
    if not HUB_ID.fullmatch(repository):
        raise UserError(
            f"the base model '{one_line(name)[:80]}' is not here: give the folder that has it with '--model'"
        )
    if _COMMIT.fullmatch(revision) and (named is None or named.revision != revision):
        return resolve_model(str(fetch(repository, revision)))
    return resolve_model(named.name if named else name)
