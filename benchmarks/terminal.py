"""A program in a pseudo-terminal, driven by keys, and what stands on its screen."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pyte


class Terminal:
    """A terminal of its own for a program."""

    def __init__(self, command: Sequence[str], folder: Path, columns: int = 120, rows: int = 40) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        # A size in the environment would count for more than the terminal's own.
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = pexpect.spawn(
            command[0], list(command[1:]), cwd=str(folder), env=environment, dimensions=(rows, columns)
        )
        self.process.delaybeforesend = None  # pexpect waits 50 ms before each key otherwise
        self.arrived = 0.0  # clock of what the program wrote last

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(self._screen.display)

    def line(self, number: int) -> str:
        """One line of the screen; a negative number counts from below."""
        cells = self._screen.buffer[number % self._screen.lines]
        return "".join(cells[column].data for column in range(self._screen.columns))

    def read(self, seconds: float) -> bool:
        """Take in what the program writes next; says whether that came in time."""
        try:
            written = self.process.read_nonblocking(65536, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.arrived = time.perf_counter()  # reading it into the screen is not the program's time
        self._stream.feed(written)
        return True

    def until(self, condition: str | Callable[[str], object], seconds: float = 120) -> None:
        """Wait until a text stands on the screen, or until what stands there fulfils a condition.

        Raises:
            AssertionError: with the screen, where that takes too long or the program ends before.
        """
        end = time.monotonic() + seconds
        while not (condition in self.text if isinstance(condition, str) else condition(self.text)):
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s: {condition}\n{self.text}")
            if not self.read(0.1) and not self.process.isalive():
                raise AssertionError(f"ended before: {condition}\n{self.text}")

    def press(self, *keys: str) -> None:
        """Send keys one after the other, each once the program has drawn what the one before did."""
        for key in keys:
            self.process.send(key)
            self.read(1)  # a busy machine draws late, and a key that comes before that meets the old focus
            while self.read(0.15):
                pass

    def exit_code(self, seconds: float = 120) -> int | None:
        """Wait until the program ends."""
        end = time.monotonic() + seconds
        while self.process.isalive() and time.monotonic() < end:
            self.read(0.1)
        self.process.close()
        code: int | None = self.process.exitstatus
        return code
