"""Start-up of the command: its help. The terminal app's first frame is in ``benchmarks/tui.py``."""

import subprocess
import sys
from typing import Any

from benchmarks.side_by_side import ROOT, in_turns, seconds_of


def measure(repeats: int) -> dict[str, Any]:
    """Median seconds of each."""

    def process(*arguments: str) -> float:
        return seconds_of(
            lambda: subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
        )

    seconds = in_turns(
        {
            "python alone": lambda: process("-c", "pass"),
            "help": lambda: process("-m", "unlearn_mlx.cli", "--help"),
        },
        repeats,
    )
    return {"seconds": seconds}
