"""Making a run from what a user asks for: a topic, a model, a preset and changed settings."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import Run, create_run, is_free, run_path
from unlearn_mlx.topics import Topic, checked_name, load_topic, shipped_topic

MOST_RUNS = 100  # on a topic, before a new one is refused a directory


@dataclass(frozen=True)
class NewRun:
    """What a run will be made of. ``reason`` says why it is this model."""

    topic: Topic
    settings: Settings
    model_name: str
    reason: str
    path: Path

    def make(self) -> Run:
        """Make its directory, or open the one that is there if it is the same work.

        A model that is not here is fetched.

        Raises:
            UserError: for a model that cannot be had, or a directory of other work.
        """
        from unlearn_mlx.compute.device import current_device
        from unlearn_mlx.models.registry import resolve_model

        source = resolve_model(self.model_name)
        device = current_device()
        model = {"name": source.name, "revision": source.revision, "sha256": source.weights_sha256}
        return create_run(self.path, self.topic, model, self.settings, f"{device.backend}: {device.name}")

    def plan(self) -> list[str]:
        """Memory and time that it will take; of a model that is not here yet, what is known without it.

        Raises:
            UserError: for a model that cannot be.
        """
        from unlearn_mlx.compute.device import current_device
        from unlearn_mlx.compute.memory import GIGABYTE
        from unlearn_mlx.compute.planner import multiplication_rate, plan, shape_of
        from unlearn_mlx.models.registry import named_model, resolve_model, to_fetch

        device = current_device()
        room = f"{device.memory_bytes / GIGABYTE:.0f} GB"
        if download := to_fetch(self.model_name):
            known = named_model(self.model_name)
            memory = f"up to {known.memory_bytes / GIGABYTE:.0f} GB of {room}" if known else ""
            return [
                f"download {download}: 'unlearn models pull {self.model_name}'",
                f"memory   {memory or 'known once it is here'}",
            ]
        shape = shape_of(resolve_model(self.model_name).folder)
        planned = plan(shape, self.settings, device, multiplication_rate())
        stages = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in planned.seconds.items())
        return [
            f"memory   about {planned.memory / GIGABYTE:.1f} GB of {room}",
            f"time     about {sum(planned.seconds.values()) / 60:.0f} minutes ({stages})",
        ]


def new_run(
    name: str, model_name: str | None, preset: str, changes: dict[str, Any], out: Path | None = None
) -> NewRun:
    """What a user asks for, checked; nothing is made or fetched yet.

    ``model_name`` None takes what this machine can hold. A topic file that lies in the directory counts.

    Raises:
        UserError: for a topic or setting that cannot be, or a directory of another topic.
    """
    name = checked_name(name)
    settings = make_settings(preset, **changes)
    topic = shipped_topic(name) or Topic(name)
    path = run_path(topic.name, out)
    if (path / "topic.toml").exists():
        edited = load_topic(path / "topic.toml")
        if edited.name != topic.name:
            raise UserError(f"{path} belongs to the topic '{edited.name}': use '--out' for another directory")
        topic = edited
    if model_name:
        return NewRun(topic, settings, model_name, "as asked", path)
    from unlearn_mlx.models.registry import default_model

    return NewRun(topic, settings, *default_model(), path)


def free_path(name: str, taken: Collection[Path] = ()) -> Path:
    """A directory for a new run on a topic: the usual one, or the first with a number that is free.

    Raises:
        UserError: for a name that cannot be a topic's.
    """
    name = checked_name(name)
    shipped = shipped_topic(name)
    usual = run_path(shipped.name if shipped else name)
    for number in range(1, MOST_RUNS):
        path = usual if number == 1 else usual.with_name(f"{usual.name}-{number}")
        if path not in taken and is_free(path):
            return path
    raise UserError(f"there are too many runs on '{name}': delete some of {usual}-*")
