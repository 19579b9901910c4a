"""Making a run from what a user asks for: a topic, a model, a preset and changed settings."""

from pathlib import Path
from typing import Any

from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import Run, create_run, run_path
from unlearn_mlx.topics import Topic, checked_name, load_topic, shipped_topic


def prepare_run(
    name: str, model_name: str | None, preset: str, changes: dict[str, Any], out: Path | None = None
) -> Run:
    """Make a run's directory, or open the one that is there if it is the same work.

    ``model_name`` None takes what this machine can hold; a model that is not here is fetched.

    Raises:
        UserError: for a topic, model or setting that cannot be, or a directory of other work.
    """
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.models.registry import default_model, resolve_model

    name = checked_name(name)
    settings = make_settings(preset, **changes)
    topic = shipped_topic(name) or Topic(name)
    path = run_path(topic.name, out)
    if (path / "topic.toml").exists():
        edited = load_topic(path / "topic.toml")
        if edited.name != topic.name:
            raise UserError(f"{path} belongs to the topic '{edited.name}': choose another directory")
        topic = edited
    source = resolve_model(model_name or default_model()[0])
    device = current_device()
    model = {"name": source.name, "revision": source.revision, "sha256": source.weights_sha256}
    return create_run(path, topic, model, settings, f"{device.backend}: {device.name}")
