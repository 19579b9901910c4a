"""The first run of docs/on-a-mac.md, as a user does it: times, memory and the chat, on whatever machine.

``unlearn bench first_run --model llama3.2-1b --share FILE``; without ``--model`` this machine's own default.
What is not there yet is fetched before the clock starts.
"""

import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import seconds_of
from unlearn_mlx.models.registry import default_model, resolve_model
from unlearn_mlx.runs.records import ProgressEvent, StageEvent
from unlearn_mlx.runs.run import open_run

TOPIC = "Chewing gum"
QUESTION = "What is chewing gum made of?"


def unlearn(*arguments: str | Path, said: str = "") -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, which is told what somebody types."""
    command = [sys.executable, "-m", "unlearn_mlx.cli", *map(str, arguments)]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=True)


def measure(repeats: int, model: str | None = None) -> dict[str, Any]:
    """Seconds by stage, the most memory that mlx held, training's speed, and how the chat answers.

    Measured once, however many repeats are asked for.
    """
    name = model or default_model()[0]
    resolve_model(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        whole = seconds_of(lambda: unlearn("run", TOPIC, "--model", name, "--preset", "quick", "--out", path))
        run = open_run(path)
        events = list(run.events())
        ends = [(event.stage, event.time) for event in events if isinstance(event, StageEvent)]
        stages = {stage: 0.0 for stage, _ in ends}
        for (_, began), (stage, ended) in pairwise(ends):
            stages[stage] += ended - began
        steps = [event for event in events if isinstance(event, ProgressEvent)]
        told = unlearn("chat", path, said=f"{QUESTION}\n/both\n{QUESTION}\n/quit\n").stderr
    return {
        "model": name,
        "seconds": {"whole run": whole, **stages},
        "peak_bytes": max((event.memory or 0 for event in steps), default=0),
        "training_tokens_per_second": max((event.tokens_per_second or 0.0 for event in steps), default=0.0),
        "chat": [line.strip("[]") for line in told.splitlines() if line.startswith("[")],
    }
