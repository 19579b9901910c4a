"""Start-up: the command's help, and the first frame of the terminal app."""

import subprocess
import sys
from typing import Any

from benchmarks.side_by_side import ROOT, in_turns, seconds_of
from tui.app import UnlearnApp


class FirstFrame(UnlearnApp):
    """The app until it is drawn once: what a person waits for before the first key counts."""

    def on_mount(self) -> None:
        """End after the first frame."""
        self.call_after_refresh(self.exit)


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
            "first frame": lambda: process("-m", "benchmarks.startup"),
        },
        repeats,
    )
    return {"seconds": seconds}


if __name__ == "__main__":
    FirstFrame().run(headless=True)
