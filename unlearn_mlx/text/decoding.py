"""The text of files that people edit: with a byte order mark or without; where it is none, why."""

import codecs

_OTHERS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_CURLY = set("\u201c\u201d\u201e\u2018\u2019")


def decoded(data: bytes) -> str:
    """UTF-8 as text, without the mark that some editors put in front.

    Raises:
        ValueError: saying in what other encoding it is, or which byte is wrong.
    """
    for mark, name in _OTHERS.items():
        if data.startswith(mark):
            raise ValueError(f"it is {name}, save it as UTF-8")
    return data.decode("utf-8-sig")


def quotes_hint(text: str) -> str:
    """What to say of a line that cannot be parsed and has curly quotes; empty where it has none."""
    return ", it has curly quotes instead of straight ones" if _CURLY & set(text) else ""
