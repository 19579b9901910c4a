"""Pictures of the terminal app, held against those in tests/snapshots/."""

import os
import re
from pathlib import Path

from tests.tui_driver import until

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = "UPDATE_SNAPSHOTS"
STILL = 12  # looks in a row that must find the same picture before it is kept


async def assert_same_picture(pilot, screen: str, folder: Path) -> None:
    """Wait until the app looks as it does in the picture that is kept.

    With UPDATE_SNAPSHOTS=1 the picture is kept that it comes to rest at. ``folder`` takes the new
    picture where it never looks like the kept one.
    """
    size = pilot.app.size
    path = FOLDER / screen / f"{size.width}x{size.height}.svg"
    looks = [""]

    def look() -> str:
        looks.append(_without_chance(pilot.app.export_screenshot(title=screen)))
        return looks[-1]

    if os.environ.get(UPDATE):
        await until(pilot, lambda: look() and len(looks) > STILL and len(set(looks[-STILL:])) == 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(looks[-1], encoding="utf-8")
        return
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        await until(pilot, lambda: look() == kept, 15)
    except AssertionError as error:
        new = folder / f"{screen}-{path.name}"
        new.write_text(looks[-1], encoding="utf-8")
        raise AssertionError(
            f"{path} and {new} differ; keep the new ones with {UPDATE}=1 if they are right"
        ) from error


def _without_chance(svg: str) -> str:
    """The picture without the number that Textual draws for its style names."""
    return re.sub(r"terminal-\d+", "terminal", svg)
