"""What the processor does in an answer and in a training step, as shares and as a picture.

Linux's ``perf`` looks 500 times a second at one process while it works, and the functions that it finds are
sorted into kinds. A wheel's own names for its functions say which is which; a Mac has no ``perf``.
``python -m benchmarks.profile`` draws docs/images/profile.svg of what was measured.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks.generation import ANSWER_TOKENS, guarded_prompts
from benchmarks.side_by_side import ROOT, open_model
from benchmarks.training import BATCH_SIZE, ours, shipped_rows
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate

PICTURE = ROOT / "docs" / "images" / "profile.svg"
ANSWERS = 64  # decoded side by side in one process
STEPS = 4
LOOKS = 499  # a second
PERF = "perf"

# Kinds by what a library or a function of mlx is called, the first that fits; the order is the picture's.
KINDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("products (BLAS)", ("openblas",), ()),
    ("our compiled elementwise functions", ("_contiguous.so", "_strided.so"), ()),
    ("mlx: elementwise", ("libmlx",), ("binary_op", "unary_op", "ternary_op", "simd::")),
    ("mlx: copies", ("libmlx",), ("copy",)),
    ("mlx: sums, softmax, norms", ("libmlx",), ("reduc", "softmax", "norm", "logsumexp")),
    ("mlx: the graph and everything else", ("libmlx",), ("",)),
    ("memory and system", ("libc.", "kernel", "libm.", "ld-"), ()),
    ("Python", ("",), ()),
)


def _prompts(model: ChatModel) -> Callable[[], object]:
    prompts = guarded_prompts(model, ANSWERS)
    return lambda: generate(model, [Request(str(n), prompt, 1) for n, prompt in enumerate(prompts)], 0)


def _answers(model: ChatModel) -> Callable[[], object]:
    prompts = guarded_prompts(model, ANSWERS)
    requests = [Request(str(n), prompt, ANSWER_TOKENS) for n, prompt in enumerate(prompts)]
    return lambda: generate(model, requests, 0)


def _training(model: ChatModel) -> Callable[[], object]:
    rows = shipped_rows()
    return lambda: ours(model, rows[: STEPS * BATCH_SIZE], rows[-BATCH_SIZE:])


WORKS = {
    "prompts of guarded answers": _prompts,
    f"guarded answers of {ANSWER_TOKENS} tokens": _answers,
    "training": _training,
}


def measure(repeats: int) -> dict[str, Any]:
    """Shares of each kind in each work, and how many cores were busy.

    Raises:
        EnvironmentCannot: where there is no ``perf``, or it may not look at our own process.
    """
    if shutil.which(PERF) is None:
        raise EnvironmentCannot("the profile needs Linux's perf: apt-get install linux-perf")
    return {work: _profiled(work, repeats) for work in WORKS}


def _profiled(work: str, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.profile", work, str(repeats)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert child.stdin and child.stdout
        if child.stdout.readline() != "ready\n":
            raise RuntimeError(f"'{work}' did not begin")
        looking = subprocess.Popen(
            [PERF, "record", "-e", "cpu-clock", "-F", str(LOOKS), "-o", str(data), "-p", str(child.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(1)  # perf says nothing when it has begun
        print("go", file=child.stdin, flush=True)
        seconds = float(child.stdout.readline())
        child.wait()
        if looking.wait() or not data.exists():
            assert looking.stderr
            raise EnvironmentCannot(f"perf may not look: {looking.stderr.read().strip()}")
        lines = subprocess.run(
            [PERF, "report", "-i", str(data), "--no-children", "--sort", "dso,symbol", "-n", "-t", "\t"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    looks: dict[str, int] = defaultdict(int)
    for line in lines:
        if line.strip() and not line.startswith("#"):
            _, count, library, symbol = (part.strip() for part in line.split("\t")[:4])
            looks[_kind(library, symbol)] += int(count)
    total = sum(looks.values())
    return {
        "seconds": seconds,
        "cores_busy": total / LOOKS / seconds,
        "shares": {kind: looks[kind] / total for kind, *_ in KINDS},
    }


def _kind(library: str, symbol: str) -> str:
    for kind, libraries, symbols in KINDS:
        if any(name in library for name in libraries) and (not symbols or any(s in symbol for s in symbols)):
            return kind
    return KINDS[-1][0]


def draw(measured: dict[str, Any], picture: Path = PICTURE) -> None:
    """One bar a work, its kinds beside each other."""
    rows = [
        {"work": work, "kind": kind, "share": share, "order": order}
        for work, found in measured.items()
        for order, (kind, share) in enumerate(found["shares"].items())
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows), background="white")
        .mark_bar(height=26)
        .encode(
            y=alt.Y("work:N", title=None, sort=list(measured), axis=alt.Axis(labelLimit=240)),
            x=alt.X(
                "share:Q",
                title="of the processor's time",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1]),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                sort=[kind for kind, *_ in KINDS],
                legend=alt.Legend(orient="bottom", columns=2, labelLimit=260),
            ),
            order="order:Q",
        )
        .properties(width=560, height=140)
    )
    picture.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")


def _work(name: str, repeats: int) -> None:
    """In a process of its own: get ready, wait to be looked at, work, and say the seconds."""
    once = WORKS[name](open_model())
    once()  # compiles, measures the batch size, and finds memory
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for _ in range(repeats):
        once()
    print(time.perf_counter() - began, flush=True)
    os._exit(0)  # what follows is not of the work


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _work(sys.argv[1], int(sys.argv[2]))
    else:
        found = measure(1)
        print(json.dumps(found, indent=2))
        draw(found)
