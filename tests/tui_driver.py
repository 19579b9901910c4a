"""Drives the terminal app in tests: a workplace with runs, and the app under a pilot."""

import asyncio
import io
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import Static

from tests.helpers import run_with_dataset
from tui.app import UnlearnApp
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.run import open_run

RECORDED = Path(__file__).parent / "recorded" / "harry-potter"

Flow = Callable[["Pilot[None]", UnlearnApp], Awaitable[None]]


def drive(
    flow: Flow, size: tuple[int, int] = (100, 30), run: Path | None = None, notifications: bool = False
) -> UnlearnApp:
    """Run the app without a terminal and let ``flow`` use it; the app has ended afterwards."""
    app = UnlearnApp(run)

    async def go() -> None:
        async with app.run_test(size=size, notifications=notifications) as pilot:
            await until(pilot, lambda: app.entries is not None and app.screen.is_mounted)
            await flow(pilot, app)
            await asyncio.to_thread(app.chat_engine.close)

    asyncio.run(go())
    return app


async def until(pilot: "Pilot[None]", condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something that the app does in its own time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s; the screen says:\n{screen_text(pilot.app)}")
        await pilot.pause(0.05)
    await pilot.pause()


async def go_to(pilot: "Pilot[None]", app: UnlearnApp, section: str) -> None:
    await app.action_show(section)
    await until(pilot, lambda: getattr(app.screen, "is_built", False))


async def write(pilot: "Pilot[None]", text: str) -> None:
    for character in text:
        await pilot.press("space" if character == " " else character)


def notified(app: Any) -> str:
    """What the app has told, a line each."""
    return "\n".join(note.message for note in app._notifications)


def screen_text(app: Any) -> str:
    """What stands on the screen, as text."""
    console = Console(
        width=app.size.width, height=app.size.height, file=io.StringIO(), record=True, force_terminal=True
    )
    console.print(app.screen._compositor.render_update(full=True))
    return console.export_text(styles=False)


def text_of(app: UnlearnApp, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).visual)


def finished_run(workplace: Path, model: str = "smollm2") -> Path:
    """A run as SmolLM2 left it, recorded; what is shipped meanwhile does not change it."""
    folder = workplace / "runs" / "harry-potter"
    shutil.copytree(RECORDED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["name"] = model
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Path("runs/harry-potter")


def tiny_run(workplace: Path, model_folder: Path, **settings: Any) -> Path:
    """A run on the tiny model that has its rows and is to be trained."""
    run_with_dataset(workplace / "runs" / "wizards", model_folder, **settings)
    return Path("runs/wizards")


def tiny_chat(workplace: Path, model: ChatModel, adapter: Any) -> Path:
    """A run on the tiny model with an adapter to chat with."""
    path = tiny_run(workplace, model.source.folder)
    adapter.save(workplace / path / "adapter")
    open_run(workplace / path).mark("train", "done")
    adapter.detach()
    return path


def children() -> list[psutil.Process]:
    """Workers that still live."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "unlearn_mlx.pipeline" in " ".join(child.cmdline())
    ]


class Ended:
    """A worker that has ended."""

    pid = 2**31 - 1

    def __init__(self, code: int) -> None:
        self.returncode = code

    def poll(self) -> int:
        return self.returncode
