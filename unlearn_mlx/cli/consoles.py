"""What tables and progress are drawn on."""

from typing import TextIO

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to who prints: rich itself ends the process with 1, a failed gate's code."""
        raise BrokenPipeError


def data_console(stream: TextIO | None = None) -> Console:
    """The console for data, on stdout where no other stream is given."""
    return _Console(file=stream, highlight=False)


def stderr_console() -> Console:
    """The console for progress: colours only on a terminal, and never where NO_COLOR is set."""
    return _Console(stderr=True, highlight=False)
