"""Pictures of the terminal app, held against those in tests/snapshots/."""

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = "UPDATE_SNAPSHOTS"


def assert_same_picture(app, screen: str, size: tuple[int, int], folder: Path) -> None:
    """Compare the app's SVG with the one that is kept; with UPDATE_SNAPSHOTS=1 keep the new one.

    ``folder`` takes the new picture where they differ.
    """
    picture = _without_chance(app.export_screenshot(title=screen))
    path = FOLDER / screen / f"{size[0]}x{size[1]}.svg"
    if os.environ.get(UPDATE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(picture, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if kept != picture:
        new = folder / f"{screen}-{path.name}"
        new.write_text(picture, encoding="utf-8")
        raise AssertionError(f"{path} and {new} differ; keep the new ones with {UPDATE}=1 if they are right")


def _without_chance(svg: str) -> str:
    """The picture without the number that Textual draws for its style names."""
    return re.sub(r"terminal-\d+", "terminal", svg)
