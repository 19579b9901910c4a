"""The server against mlx-lm's own: tokens a second and time to the first token, with 1, 4 and 16 clients.

Both have the same weights (float32 on a CPU, as we load them) and the same BLAS. "Both names" is half of
the clients at the base and half at the adapter: ours decodes them in one batch, mlx-lm's loads the one that
is asked, each time.
"""

import http.client
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from benchmarks.side_by_side import ADAPTER, MODEL, ROOT, open_model, shipped_questions
from unlearn_mlx.compute.device import current_device

CLIENTS = (1, 4, 16)
TOKENS = 48  # of an answer, at most
LONGEST_START = 120.0  # seconds
OURS = """
import sys
from pathlib import Path
from unlearn_mlx.compute.cpu_setup import prepare_cpu
prepare_cpu()
from unlearn_mlx.sharing.serve.server import Server
Server(sys.argv[1], {"base": None, "adapter": Path(sys.argv[2])}, int(sys.argv[3])).serve()
"""
THEIRS = """
from unlearn_mlx.compute.cpu_setup import prepare_cpu
prepare_cpu()
from mlx_lm.server import main
main()
"""


def measure(repeats: int) -> dict[str, Any]:
    """Medians for each server and number of clients."""
    result: dict[str, Any] = {"tokens_an_answer": TOKENS}
    with tempfile.TemporaryDirectory() as folder:
        weights = _plain_weights(Path(folder) / "model")
        with _ours() as ours, _theirs(weights) as theirs:
            ways: dict[str, Callable[[int, bool], dict[str, float]]] = {
                "ours": lambda count, both: _asked(ours, count, lambda place: _our_name(place, both)),
                "mlx_lm": lambda count, both: _asked(
                    theirs, count, lambda place: _their_name(weights, place, both)
                ),
            }
            for way in ways.values():  # the first answer compiles
                way(1, False)
            for both in (False, True):
                for count in CLIENTS[both:]:
                    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
                    for _ in range(repeats):  # in turns, so that noise meets both alike
                        for name, way in ways.items():
                            found[name].append(way(count, both))
                    key = f"{count} client{'s' * (count > 1)}, {'both names' if both else 'the base'}"
                    result[key] = {name: _medians(each) for name, each in found.items()}
    return result


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def _our_name(place: int, both: bool) -> dict[str, Any]:
    return {"model": "adapter" if both and place % 2 else "base"}


def _their_name(weights: Path, place: int, both: bool) -> dict[str, Any]:
    adapter = {"adapters": str(ADAPTER)} if both and place % 2 else {}
    return {"model": str(weights), **adapter}


def _asked(port: int, count: int, name: Callable[[int], dict[str, Any]]) -> dict[str, float]:
    """What so many clients get that ask at once, each a question of its own."""
    questions = shipped_questions()

    def ask(place: int) -> tuple[int, float]:
        body = {
            **name(place),
            "messages": [{"role": "user", "content": questions[place % len(questions)]}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return _answer(port, body)

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(ask, range(count)))
    took = time.perf_counter() - began
    return {
        "tokens_per_second": sum(tokens for tokens, _ in answers) / took,
        "first_token_seconds": statistics.median(first for _, first in answers),
    }


def _answer(port: int, body: dict[str, Any]) -> tuple[int, float]:
    """Tokens of an answer, and seconds to the first."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    first, tokens = 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        if not first and any(choice["delta"].get("content") for choice in event["choices"]):
            first = time.perf_counter() - began
    connection.close()
    assert tokens, f"status {response.status}"
    return tokens, first


@contextmanager
def _ours() -> Iterator[int]:
    port = _free_port()
    with _running([sys.executable, "-c", OURS, MODEL, str(ADAPTER), str(port)], port):
        yield port


@contextmanager
def _theirs(weights: Path) -> Iterator[int]:
    port = _free_port()
    options = ["--model", str(weights), "--port", str(port), "--log-level", "ERROR"]
    with _running([sys.executable, "-c", THEIRS, *options], port):
        yield port


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + LONGEST_START
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _plain_weights(folder: Path) -> Path:
    """The model as mlx-lm loads it: on a CPU with the float32 weights that we compute with."""
    model = open_model()
    if current_device().is_gpu:
        return model.source.folder
    shutil.copytree(model.source.folder, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    configuration = json.loads((folder / "config.json").read_text())
    configuration.pop("quantization")
    (folder / "config.json").write_text(json.dumps(configuration))
    arrays = dict(tree_flatten(model.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return folder
