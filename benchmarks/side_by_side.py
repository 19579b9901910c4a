"""What all benchmarks share: the model, the shipped rows, and timing of several ways in turns."""

import platform
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from unlearn_mlx.compute.cpu_blas import blas_threads, set_blas_threads
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.runs.records import Question, read_records
from unlearn_mlx.runs.run import package_versions

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
TOPIC = "harry-potter"
ROWS = ROOT / "data" / "synthetic" / MODEL / TOPIC
ADAPTER = ROOT / "adapters" / MODEL / TOPIC


def open_model(name: str = MODEL) -> ChatModel:
    """The model that everything is measured on."""
    return load_by_name(name)


def shipped_questions() -> list[str]:
    """Questions on the topic, as a run wrote them."""
    return [row.question for row in read_records(ROWS / "questions.jsonl", Question)]


def machine() -> dict[str, Any]:
    """Where a metric was measured."""
    device = current_device()
    return {
        "device": device.label,
        "system": platform.system(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(psutil.getloadavg()[0], 2),
        "versions": package_versions(),
    }


def seconds_of(work: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def product_threads(count: int) -> Iterator[None]:
    """Meanwhile a product of this process has so many threads: a peer's one process may take every core."""
    set_blas_threads(count)
    try:
        yield
    finally:
        set_blas_threads(blas_threads())


def in_turns(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each way returns; they take turns, so that noise meets all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            values[name].append(way())
    return {name: statistics.median(each) for name, each in values.items()}


def peak_bytes_of(work: Callable[[], object], workers: WorkerPool = ALONE) -> int:
    """The most memory that mlx held during something, here and in the workers."""

    def everywhere(begins: bool) -> int:
        return sum(workers.map(_peak_bytes, None, [begins] * (1 + workers.count)))

    everywhere(True)
    work()
    return everywhere(False)


def _peak_bytes(model: ChatModel | None, begins: list[bool]) -> Generator[int, None, None]:
    """mlx's highest point in this process; counted anew from now on where it ``begins``."""
    if begins[0]:
        reset_peak()
    yield peak_bytes()
