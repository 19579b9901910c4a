"""The demo's metrics and pictures: ``unlearn bench demo`` and ``python benchmarks/demo.py screenshots``.

Measured are seconds to the first token in one column and in two (the later of the
two), in the first turn and after three; questions from four tabs at once; and in a browser the first page,
and how soon a tab is answered after another was closed in the middle of a long answer.
The pictures go to docs/images/.
"""

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
from playwright.sync_api import Browser, Page

from benchmarks.browser import chromium
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe, probe_files, read_probes
from unlearn_mlx.inference.asking import Mode, context_of
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.runs.run import package_versions
from unlearn_mlx.topics import load_topic

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "adapters" / "smollm2" / "harry-potter"
ROWS = ROOT / "data" / "synthetic" / "smollm2" / "harry-potter"
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
MEASURED = (1, 4)  # turns of a conversation
TOKENS = 12  # of an answer, where its first one is measured
READING = 0.3  # seconds between an answer and the next question: nobody is faster
MOST_BYTES = 300_000  # of a picture
PATIENCE = 120_000  # milliseconds
SIZES = {"light": (1280, 860), "dark": (1280, 860), "phone": (390, 844)}


def first_tokens(engine: Engine, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds to the first token of every column, by turn and columns; the runs are interleaved.

    No question is asked twice, and those of a repeat are of about one length in all columns.
    """
    questions = iter(sorted({probe.question for probe in _shipped_probes()}, key=len))
    times: dict[int, dict[str, list[float]]] = {turn: {name: [] for name in COLUMNS} for turn in MEASURED}
    for _ in range(repeats):
        told: dict[str, dict[Mode, list[dict[str, str]]]] = {
            name: {mode: [] for mode in modes} for name, modes in COLUMNS.items()
        }
        for turn in range(1, max(MEASURED) + 1):
            for name in COLUMNS:
                question = next(questions)
                asked = {mode: context_of(said, question) for mode, said in told[name].items()}
                took, texts = _first_token(engine, asked)
                if turn in MEASURED:
                    times[turn][name].append(took)
                told[name] = {
                    mode: [*said, {"role": "assistant", "content": texts[mode].strip()}]
                    for mode, said in asked.items()
                }
                time.sleep(READING)
    metrics = {}
    for turn, by_columns in times.items():
        medians = {name: round(statistics.median(values), 4) for name, values in by_columns.items()}
        ratio = round(medians["both"] / medians["base"], 3)
        metrics[f"turn {turn}"] = {**medians, "two columns to one": ratio}
    return metrics


def _shipped_probes() -> list[Probe]:
    topic = load_topic(ROWS / "topic.toml")
    probes = [probe for path in probe_files(topic) for probe in read_probes(path)]
    return [probe for probe in probes if probe.form == QUESTION_ANSWER]


def _first_token(engine: Engine, asked: dict[Mode, list[dict[str, str]]]) -> tuple[float, dict[Mode, str]]:
    """Seconds until every mode has said something, and what each says in all."""
    start = time.perf_counter()
    texts: dict[Mode, str] = {}
    took = 0.0
    for piece in engine.answer(asked, max_tokens=TOKENS):
        texts[piece.mode] = texts.get(piece.mode, "") + piece.text
        if not took and len(texts) == len(asked):
            took = time.perf_counter() - start
    return took, texts


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
    assert resident[-1] < 1.05 * resident[0], f"questions leave memory behind: {resident}"
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


def first_page(browser: Browser, address: str) -> float:
    """Seconds until a page that was never opened before can be typed into."""
    page = browser.new_context().new_page()
    start = time.perf_counter()
    page.goto(address)
    page.get_by_test_id("stChatInputTextArea").wait_for()
    took = time.perf_counter() - start
    page.context.close()
    return round(took, 2)


def after_a_closed_tab(browser: Browser, address: str) -> float:
    """Seconds to an answer in one tab, when another was closed in the middle of one of 512 tokens."""
    tabs = [browser.new_context().new_page() for _ in range(2)]
    for tab in tabs:
        tab.goto(address)
        tab.get_by_role("slider", name="Longest answer").press("End")
    tabs[1].get_by_text("Loading").wait_for(state="hidden", timeout=PATIENCE)
    ask(tabs[0], "Tell me a long story about a village, with all of its people.")
    tabs[0].get_by_text("first token after").first.wait_for(timeout=PATIENCE)
    tabs[0].context.close()
    start = time.perf_counter()
    ask(tabs[1], "What is the capital of Japan?")
    tabs[1].get_by_role("button", name="Regenerate").wait_for(timeout=PATIENCE)
    took = time.perf_counter() - start
    tabs[1].context.close()
    return round(took, 2)


def ask(page: Page, question: str) -> None:
    """Type a question and send it."""
    page.get_by_test_id("stChatInputTextArea").fill(question)
    page.keyboard.press("Enter")


def screenshots() -> None:
    """The pictures of the README: every page, in light, in dark and on a phone."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # In a folder of its own: no runs of this clone are in the pictures.
    with tempfile.TemporaryDirectory() as place, served(Path(place)) as address, chromium() as browser:
        for look, size in SIZES.items():
            page = _page(browser, "dark" if look == "dark" else "light", size)
            page.goto(address)
            # What stands there after the model was loaded, not the wait for it, is in the caption.
            page.get_by_role("button", name="Who wrote").wait_for(timeout=PATIENCE)
            page.get_by_text("Loading").wait_for(state="hidden", timeout=PATIENCE)
            ask(page, QUESTION)
            page.get_by_role("button", name="Regenerate").wait_for(timeout=PATIENCE)
            _picture(page, f"demo-chat-{look}")
        for name in ("results", "map", "making", "start"):
            page = _page(browser, "light", SIZES["light"])
            page.goto(f"{address}/{'results' if name == 'map' else name}")
            page.get_by_role("heading").first.wait_for(timeout=PATIENCE)
            if name == "map":
                page.locator(".st-key-heat .marks").wait_for(timeout=PATIENCE)
                page.get_by_role("heading", name="Where it shows").evaluate("one => one.scrollIntoView()")
            _picture(page, f"demo-{name}")


def _page(browser: Browser, scheme: Any, size: tuple[int, int]) -> Page:
    context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    return context.new_page()


def _picture(page: Page, name: str) -> None:
    page.wait_for_timeout(1500)  # charts and fonts settle
    page.get_by_test_id("stStatusWidget").wait_for(state="hidden", timeout=PATIENCE)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < MOST_BYTES, f"{path} has {path.stat().st_size} bytes"
    print(path.relative_to(ROOT), path.stat().st_size)
    page.context.close()


def measure(repeats: int) -> dict[str, Any]:
    """All metrics."""
    engine = Engine("smollm2", ADAPTER)
    engine.wait_until_ready()
    device = current_device()
    results: dict[str, Any] = {
        "device": f"{device.label}, {device.cores} cores",
        "versions": package_versions(),
        "seconds to the first token": first_tokens(engine, repeats),
        "four tabs at once": tabs(engine),
    }
    engine.close()
    with served(ROOT) as address, chromium() as browser:
        results["seconds to the first page"] = [first_page(browser, address) for _ in range(repeats)]
        results["seconds to an answer after another tab was closed"] = after_a_closed_tab(browser, address)
    return results


if __name__ == "__main__":
    if sys.argv[1:] != ["screenshots"]:
        sys.exit("usage: python benchmarks/demo.py screenshots")
    screenshots()
