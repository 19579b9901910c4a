"""Pictures of the terminal app: ``python -m tools.screenshots [RUN]`` writes them to docs/images/.

RUN is a run that is done; its name is all that a picture says of where it lies. Without one the run
is shown whose rows, adapter and metrics come with the project.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static

from benchmarks.browser import chromium
from benchmarks.side_by_side import MODEL, ROOT
from tui.app import UnlearnApp
from tui.section import SECTIONS
from unlearn_mlx.config import Settings
from unlearn_mlx.runs.files import append_rows, read_journal, read_json, read_rows
from unlearn_mlx.runs.records import Stage
from unlearn_mlx.runs.run import STAGES, create_run
from unlearn_mlx.topics import load_topic, slug_of

IMAGES = ROOT / "docs" / "images"
SIZE = (120, 36)
SHIPPED = "harry-potter"
QUESTION = "Who is Harry Potter?"
PATIENCE = 120  # seconds


async def settled(pilot: "Pilot[None]", app: UnlearnApp, seconds: float = 1.0) -> None:
    """Wait until the screen is built and its timers have drawn it."""
    while not getattr(app.screen, "is_built", True):
        await pilot.pause(0.05)
    await pilot.pause(seconds)


async def pictures(run: Path) -> dict[str, str]:
    """An SVG of each screen, the chat with both columns answering."""
    app = UnlearnApp(run)
    found: dict[str, str] = {}
    async with app.run_test(size=SIZE) as pilot:
        while app.entries is None:
            await pilot.pause(0.05)
        for section in SECTIONS:
            await app.action_show(section)
            await settled(pilot, app)
            if section == "chat":
                await _ask(pilot, app)
            found[section] = app.export_screenshot(title="unlearn tui")
        await app.action_show("home")
        await settled(pilot, app)
        await pilot.press("n")
        await settled(pilot, app)
        while "takes" not in str(app.screen.query_one("#plan", Static).visual):
            await pilot.pause(0.1)
        found["new-run"] = app.export_screenshot(title="unlearn tui")
        await asyncio.to_thread(app.chat_engine.close)
    return found


async def _ask(pilot: "Pilot[None]", app: UnlearnApp) -> None:
    await pilot.press("ctrl+t", "ctrl+t")  # adapter, base, both
    await pilot.press(*("space" if character == " " else character for character in QUESTION), "enter")
    for _ in range(PATIENCE):
        await pilot.pause(1.0)
        turns = app.screen.conversation.turns  # type: ignore[attr-defined]
        if turns and turns[-1].state == "answered":
            break
    await pilot.pause(0.5)


def shipped_run(place: Path) -> None:
    """Put a shipped run together again.

    Of its events only training's are shipped: the others are made of its rows.
    """
    adapter, rows = ROOT / "adapters" / MODEL / SHIPPED, ROOT / "data" / "synthetic" / MODEL / SHIPPED
    metrics = read_json(adapter / "metrics.json")
    run = create_run(
        place, load_topic(rows / "topic.toml"), metrics["model"], Settings(**metrics["settings"]), ""
    )
    run.manifest.stages = {stage: Stage(state="done") for stage in STAGES}
    run.save_manifest()
    shutil.copytree(adapter, run.file("adapter"))
    for path in (*rows.glob("*.jsonl"), adapter / "evaluation.json"):
        shutil.copy(path, place)
    questions = {row["id"]: row["question"] for row in read_rows(run.file("questions.jsonl"))}
    answers = [row for row in read_rows(run.file("answers.jsonl")) if row["question_id"] in questions]
    training = read_journal(adapter / "events.jsonl")
    began, ended = training[0]["time"], training[-1]["time"]
    samples = [{**row, "question": questions[row["question_id"]]} for row in answers]
    probes = len(read_json(adapter / "evaluation.json")["probes"])
    append_rows(
        run.file("events.jsonl"),
        [
            *_stage("questions", began, len(questions), "topic questions"),
            *_stage("answers", began, len(answers), "guarded answers", samples),
            *training,
            *_stage("evaluate", ended, probes, "probes"),
        ],
    )


def _stage(
    name: str, time: float, count: int, unit: str, samples: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    facts = {"done": count, "total": count, "unit": unit, "samples": samples}
    return [
        {"time": time, "stage": name, "kind": "progress", **facts},
        {"time": time, "stage": name, "kind": "stage", "state": "done"},
    ]


def main() -> None:
    """Draw, and turn the drawings into PNG files by a browser, which has the fonts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    given = parser.parse_args().run
    run = given.resolve() if given else None
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "runs" / (slug_of(run.name) if run else SHIPPED)
        if run:
            shutil.copytree(run, place, ignore=shutil.ignore_patterns("checkpoints", "journal"))
        else:
            shipped_run(place)
        os.chdir(folder)
        drawn = asyncio.run(pictures(Path("runs") / place.name))
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            for name, svg in drawn.items():
                page.set_content(f"<body style='margin:0'>{svg}</body>")
                page.locator("svg").screenshot(path=str(IMAGES / f"tui-{name}.png"))
    print("\n".join(str(path.relative_to(ROOT)) for path in sorted(IMAGES.glob("tui-*.png"))))


if __name__ == "__main__":
    main()
