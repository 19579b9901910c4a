"""A model that is fetched from the hub, by a command beside the app: how far that is, and an end to it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tui.command import run_command
from tui.text import gigabytes
from unlearn_mlx.models.hub import cached_folder, hub_cache, lack
from unlearn_mlx.models.registry import named_model
from unlearn_mlx.text.printable import one_line

LOOK = 0.5  # seconds between two looks at how much has come


def is_here(model_name: str) -> bool:
    """Whether a model needs no fetching: embedded, in a folder, or whole in the hub's cache."""
    named = named_model(model_name)
    if (named and named.repository is None) or Path(model_name).expanduser().is_dir():
        return True
    if named is None and model_name.count("/") != 1:
        return True  # no model at all, which is told better by who looks for it
    folder = cached_folder(*_place(model_name))
    return folder is not None and lack(folder) is None


async def fetch(model_name: str, tell: Callable[[str], None]) -> None:
    """Fetch a model, telling how far that is; what has come is kept where it is cancelled.

    Raises:
        EnvironmentCannot: where it cannot be had.
    """
    named = named_model(model_name)
    of_all = f" of {gigabytes(named.download_bytes)} ({named.licence} licence)" if named else ""
    fetching = asyncio.ensure_future(run_command("models", "pull", model_name))
    try:
        while not fetching.done():
            come = await asyncio.to_thread(_fetched_bytes, model_name)
            tell(f"Fetching {one_line(model_name)}: {gigabytes(come)}{of_all}. Back keeps what has come.")
            await asyncio.wait([fetching], timeout=LOOK)
    finally:
        fetching.cancel()
        await asyncio.wait([fetching])
    fetching.result()


def _place(model_name: str) -> tuple[str, str | None]:
    named = named_model(model_name)
    return (named.repository or model_name, named.revision) if named else (model_name, None)


def _fetched_bytes(model_name: str) -> int:
    """What the hub's cache holds of a model, whole files and parts."""
    blobs = hub_cache() / f"models--{_place(model_name)[0].replace('/', '--')}" / "blobs"
    total = 0
    for path in blobs.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # it has just been renamed
    return total
