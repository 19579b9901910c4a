"""Text that others wrote, made safe for where it is shown: a terminal, a page, a program."""

import json
from typing import Any


def printable(text: str) -> str:
    """A text without what could rule its surroundings: control and direction characters are blanks."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def one_line(text: str) -> str:
    """The printable text in a single line."""
    return " ".join(printable(text).split())


def as_json(value: Any) -> str:
    """Indented JSON for a terminal or a program; what could rule a terminal is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
