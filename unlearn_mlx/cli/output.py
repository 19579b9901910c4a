"""Where the command writes: data to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Tell the user something that is no data."""
    print(text, file=sys.stderr)


@contextmanager
def for_a_reader() -> Iterator[None]:
    """Print data; a reader who has gone, as ``head`` does, misses the rest, and that is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()


def nobody_reads() -> None:
    """Send nowhere what is still to be written for a reader who has left."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
