"""What another busy process costs: one thread a product, as we do it, against one for each core.

A product of the model's size, and a whole small run, alone and beside a process that keeps one core busy.
Each is measured in a process of its own, since a thread's number is decided before the first product.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import ROOT

ROWS, WIDTH = 64, 576  # of SmolLM2's products
RUN = (
    *("run", "Harry Potter", "--model", "smollm2", "--preset", "quick", "--questions", "12"),
    *("--neighbours", "6", "--general", "4", "--probes", "40"),
)
PRODUCT = f"""
import time
from unlearn_mlx.compute.cpu_setup import prepare_cpu
prepare_cpu()
import mlx.core as mx
left, right = mx.ones(({ROWS}, {WIDTH})), mx.ones(({WIDTH}, {WIDTH}))
mx.eval(left @ right)
done, began = 0, time.perf_counter()
while time.perf_counter() - began < 2:
    mx.eval([left @ right for _ in range(20)])
    done += 20
print(done * 2 * {ROWS} * {WIDTH} * {WIDTH} / (time.perf_counter() - began) / 1e9)
"""


def measure(repeats: int) -> dict[str, Any]:
    """Rates in GFLOP/s and minutes, medians, for one thread (ours) and for one a core, alone and not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    result: dict[str, Any] = {}
    for name, threads in (("ours", None), ("a thread a core", cores)):
        rates: dict[str, list[float]] = {"alone": [], "beside": []}
        for _ in range(repeats):
            rates["alone"].append(_rate(threads))
            with busy_process():
                rates["beside"].append(_rate(threads))
        result[name] = {"gflops": {key: statistics.median(values) for key, values in rates.items()}}
    # A whole run takes minutes, so that it is measured once each way.
    for name, threads in (("ours", None), ("a thread a core", cores)):
        alone = _run_seconds(threads)
        with busy_process():
            beside = _run_seconds(threads, most=10 * alone)
        result[name]["run_seconds"] = {"alone": alone, "beside": beside}
        result[name]["times_as_long"] = beside / alone
    return result


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that keeps one core busy as long as the context lasts."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def _environment(threads: int | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    return environment if threads is None else {**environment, "OPENBLAS_NUM_THREADS": str(threads)}


def _rate(threads: int | None) -> float:
    command = [sys.executable, "-c", PRODUCT]
    done = subprocess.run(
        command, env=_environment(threads), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _run_seconds(threads: int | None, most: float | None = None) -> float:
    """How long a whole run takes, cache and all made anew; ``most`` where it takes longer than that."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**_environment(threads), "UNLEARN_CACHE": folder}
        started = [sys.executable, "-m", "unlearn_mlx.cli", *RUN, "--out", str(Path(folder) / "run")]
        began = time.perf_counter()
        try:
            subprocess.run(started, env=environment, cwd=ROOT, capture_output=True, check=True, timeout=most)
        except subprocess.TimeoutExpired:
            return float(most or 0)
        return time.perf_counter() - began
