"""Where the command writes: data to stdout, everything else to stderr."""

import sys


def say(text: str) -> None:
    """Tell the user something that is no data."""
    print(text, file=sys.stderr)
