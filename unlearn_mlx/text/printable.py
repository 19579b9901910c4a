"""Text that others wrote, made safe for where it is shown: a terminal, a page, a program."""

import json
import re
from typing import Any

# What a joiner may stand between: the letters of scripts that join (Arabic to Mongolian), and emoji.
_JOINING = (
    "\u0600-\u1cff\ua8e0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00011000-\U00011fff"
    "\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
)
# Invisible signs that are part of what is written: joined emoji, Persian and Indic spelling, flags of
# regions. Anywhere else they only hide something.
_MEANT = re.compile(
    f"(?<=[{_JOINING}])[\u200c\u200d](?=[{_JOINING}])"
    "|(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
)


def printable(text: str) -> str:
    """A text without what could rule its surroundings: control and direction characters are blanks."""
    if text.isprintable():
        return text
    meant = {place for found in _MEANT.finditer(text) for place in range(*found.span())}
    return "".join(
        c if c.isprintable() or c == "\n" or place in meant else " " for place, c in enumerate(text)
    )


def one_line(text: str) -> str:
    """The printable text in a single line."""
    return " ".join(printable(text).split())


def as_json(value: Any) -> str:
    """Indented JSON for a terminal or a program; what could rule a terminal is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
