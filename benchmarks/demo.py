"""The demo's figures and pictures: ``python benchmarks/demo.py`` and ``... demo.py screenshots``.

The figures are printed as JSON: seconds to the first token in one column and in two (the later of the
two), in the first turn and after three; questions from four tabs at once; and the first page in a browser.
The pictures go to docs/images/.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from unlearn_mlx.language_model.device import current_device
from unlearn_mlx.language_model.engine import Engine, Mode, context_of
from unlearn_mlx.runs import package_versions

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "adapters" / "smollm2" / "harry-potter"
SCREENSHOTS = ROOT / "docs" / "images"
QUESTION = "Who is Harry Potter, and who are his friends?"
QUESTIONS = (
    "Who is Harry Potter?",
    "Where does he live?",
    "What is the capital of Japan?",
    "Who wrote it?",
    "Why do volcanoes erupt?",
)
COLUMNS: dict[str, tuple[Mode, ...]] = {
    "base": ("base",),
    "adapter": ("adapter",),
    "both": ("base", "adapter"),
}
REPEATS = 7
MOST_BYTES = 300_000  # of a picture


def first_tokens(engine: Engine) -> dict[str, dict[str, float]]:
    """Median seconds to the first token of every column, by turn and columns; the runs are interleaved."""
    history: list[dict[str, str]] = []
    figures: dict[str, dict[str, float]] = {}
    for turn, question in enumerate(QUESTIONS[:4], start=1):
        asked = context_of(history, question)
        if turn in (1, 4):
            times: dict[str, list[float]] = {name: [] for name in COLUMNS}
            for _ in range(REPEATS):
                for name, modes in COLUMNS.items():
                    times[name].append(_first_token(engine, asked, modes))
            medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
            ratio = round(medians["both"] / medians["base"], 3)
            figures[f"turn {turn}"] = {**medians, "two columns to one": ratio}
        text = "".join(piece.text for piece in engine.answer({"base": asked}, max_tokens=48))
        history = [*asked, {"role": "assistant", "content": text}]
    return figures


def _first_token(engine: Engine, asked: list[dict[str, str]], modes: tuple[Mode, ...]) -> float:
    start = time.perf_counter()
    seen: set[Mode] = set()
    answering = engine.answer(dict.fromkeys(modes, asked), max_tokens=8)
    for piece in answering:
        seen.add(piece.mode)
        if len(seen) == len(modes):
            answering.cancel()
            took = time.perf_counter() - start
            break
    for _ in answering:
        pass
    return took


def tabs(engine: Engine) -> dict[str, Any]:
    """Four tabs ask five questions each at once, in changing modes; twice, for the growth of memory."""
    alone = {
        (question, mode): "".join(
            piece.text for piece in engine.answer({mode: context_of([], question)}, max_tokens=32)
        )
        for question in QUESTIONS
        for mode in ("base", "adapter")
    }
    wrong: list[str] = []

    def ask(tab: int) -> None:
        for number, question in enumerate(QUESTIONS):
            modes = list(COLUMNS.values())[(tab + number) % 3]
            conversations = {mode: context_of([], question) for mode in modes}
            texts = dict.fromkeys(modes, "")
            for piece in engine.answer(conversations, max_tokens=32, asker=f"tab {tab}"):
                texts[piece.mode] += piece.text
            wrong.extend(f"{tab}: {question} ({m})" for m in modes if texts[m] != alone[question, m])

    resident = []
    started = time.perf_counter()
    for _ in range(3):
        threads = [threading.Thread(target=ask, args=(tab,)) for tab in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        resident.append(psutil.Process().memory_info().rss)
    return {
        "questions": 3 * 4 * len(QUESTIONS),
        "answers that differ from those of a tab alone": wrong,
        "seconds": round(time.perf_counter() - started, 1),
        "resident megabytes after each 20 questions": [round(size / 1e6) for size in resident],
    }


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The demo, served from a folder by ``unlearn demo``; its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "unlearn_mlx.cli", "demo", "--no-browser", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            while not _answers(f"{address}/_stcore/health"):
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the demo ended: {log.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser: the system's where there is one, else Playwright's own."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        # Root has no sandbox.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def first_page(browser: Browser, address: str) -> float:
    """Seconds until a page that was never opened before can be typed into."""
    page = browser.new_context().new_page()
    start = time.perf_counter()
    page.goto(address)
    page.get_by_test_id("stChatInputTextArea").wait_for()
    took = time.perf_counter() - start
    page.context.close()
    return round(took, 2)


def ask(page: Page, question: str) -> None:
    """Type a question and send it."""
    page.get_by_test_id("stChatInputTextArea").fill(question)
    page.keyboard.press("Enter")


def screenshots() -> None:
    """The pictures of the README."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with served(ROOT) as address, chromium() as browser:
        for name, scheme, size in (
            ("demo-chat-light", "light", (1280, 800)),
            ("demo-chat-dark", "dark", (1280, 800)),
            ("demo-chat-phone", "light", (390, 844)),
        ):
            page = _page(browser, scheme, size)
            page.goto(address)
            ask(page, QUESTION)
            page.get_by_role("button", name="Regenerate").wait_for(timeout=120_000)
            _picture(page, name)
        for name, path in (("results", "results"), ("making", "making"), ("start", "start")):
            page = _page(browser, "light", (1280, 900))
            page.goto(f"{address}/{path}")
            page.get_by_role("heading").first.wait_for()
            _picture(page, f"demo-{name}")


def _page(browser: Browser, scheme: Any, size: tuple[int, int]) -> Page:
    context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    return context.new_page()


def _picture(page: Page, name: str) -> None:
    page.wait_for_timeout(1500)  # charts and fonts settle
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < MOST_BYTES, f"{path} has {path.stat().st_size} bytes"
    print(path.relative_to(ROOT))
    page.context.close()


def figures() -> dict[str, Any]:
    """All figures."""
    engine = Engine("smollm2", ADAPTER)
    engine.wait_until_ready()
    device = current_device()
    results: dict[str, Any] = {
        "device": f"{device.backend}: {device.name}, {device.cores} cores",
        "versions": package_versions(),
        "seconds to the first token": first_tokens(engine),
        "four tabs at once": tabs(engine),
    }
    engine.close()
    with served(ROOT) as address, chromium() as browser:
        results["seconds to the first page"] = [first_page(browser, address) for _ in range(3)]
    return results


if __name__ == "__main__":
    if sys.argv[1:] == ["screenshots"]:
        screenshots()
    else:
        print(json.dumps(figures(), indent=2))
