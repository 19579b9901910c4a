"""Making a run from what a user asks for: a topic, a model, a preset and changed settings."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.records import read_manifest
from unlearn_mlx.runs.run import Run, create_run, run_path
from unlearn_mlx.sizes import sized
from unlearn_mlx.topics import Topic, checked_name, load_topic, shipped_topic

if TYPE_CHECKING:
    from unlearn_mlx.compute.model_shape import ModelShape


@dataclass(frozen=True)
class NewRun:
    """What a run will be made of. ``reason`` says why it is this model."""

    topic: Topic
    settings: Settings
    model_name: str
    reason: str
    path: Path
    given: frozenset[str] = frozenset()  # names of the settings that the user chose

    def make(self) -> Run:
        """Make its directory, or open the one that is there if it is the same work.

        A model that is not here is fetched.

        Raises:
            UserError: for a model that cannot be had, or a directory of other work.
        """
        from unlearn_mlx.compute.device import current_device
        from unlearn_mlx.compute.model_shape import shape_or_none
        from unlearn_mlx.models.registry import resolve_model

        source = resolve_model(self.model_name)
        settings = self._sized(shape_or_none(source.folder))
        return create_run(self.path, self.topic, source.identity, settings, current_device().label)

    def plan(self) -> list[str]:
        """Memory and time that it will take; of a model that is not here yet, what is known without it.

        Raises:
            UserError: for a model that cannot be.
        """
        from unlearn_mlx.compute.device import current_device
        from unlearn_mlx.compute.duration import multiplication_rate, stage_seconds
        from unlearn_mlx.compute.memory import free_bytes
        from unlearn_mlx.compute.planner import plan, weight_bytes
        from unlearn_mlx.compute.workers import worker_count
        from unlearn_mlx.models.registry import to_fetch
        from unlearn_mlx.session.plan_text import memory_lines, time_line

        device = current_device()
        download, shape = to_fetch(self.model_name), self._shape
        if shape is None:
            memory = ["memory   known once it is here"]
            return [f"download {download}: 'unlearn models pull {self.model_name}'", *memory]
        workers = worker_count(weight_bytes(shape, device), free_bytes(), device)
        settings = self.settings_for_model()
        planned = plan(shape, settings, device, workers)
        lines = memory_lines(planned, shape, device)
        if download:
            return [f"download {download}: 'unlearn models pull {self.model_name}'", *lines]
        again = planned.computation.checkpointing
        return [*lines, time_line(stage_seconds(shape, settings, multiplication_rate(), again))]

    def settings_for_model(self) -> Settings:
        """The settings with what follows from the model's size; as they are where it is not known yet.

        Raises:
            UserError: for a model that cannot be.
        """
        return self._sized(self._shape)

    @cached_property
    def _shape(self) -> "ModelShape | None":
        """The model's shape; None of one that has no name and is not here yet."""
        from unlearn_mlx.compute.model_shape import shape_of
        from unlearn_mlx.models.registry import named_model, resolve_model, to_fetch

        if not to_fetch(self.model_name):
            return shape_of(resolve_model(self.model_name).folder)
        known = named_model(self.model_name)
        return known.shape if known else None

    def _sized(self, shape: "ModelShape | None") -> Settings:
        """The settings with what follows from the model's size; as they are where it is not known."""
        return sized(self.settings, shape.parameters, self.given) if shape else self.settings


def new_run(
    name: str, model_name: str | None, preset: str, changes: dict[str, Any], out: Path | None = None
) -> NewRun:
    """What a user asks for, checked; nothing is made or fetched yet.

    ``model_name`` None takes what this machine can hold. A topic file that lies in the directory counts.

    Raises:
        UserError: for a topic, setting or guardrail that cannot be, or a directory of another topic.
    """
    from unlearn_mlx.synthetic_data.guardrail import AUTO, named_guardrail

    name = checked_name(name)
    settings = make_settings(preset, **changes)
    if settings.guardrail != AUTO:
        named_guardrail(settings.guardrail)
    given = frozenset(key for key, value in changes.items() if value is not None)
    topic = shipped_topic(name) or Topic(name)
    path = run_path(topic.name, out)
    if (path / "topic.toml").exists():
        edited = load_topic(path / "topic.toml")
        if edited.name != topic.name:
            raise UserError(f"{path} belongs to the topic '{edited.name}': use '--out' for another directory")
        topic = edited
    from unlearn_mlx.models.registry import default_model, name_here

    if model_name:
        made = path / "manifest.json"
        is_made = made.exists() and read_manifest(made).model.name == model_name
        known = model_name if is_made else name_here(model_name)
        reason = "as asked" if known == model_name else f"what {model_name} is called here"
        return NewRun(topic, settings, known, reason, path, given)
    return NewRun(topic, settings, *default_model(), path, given)
