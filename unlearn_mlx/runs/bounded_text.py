"""Text that a model is given: no tokenizer takes half a surrogate pair, and no memory any length."""

from typing import Annotated

from pydantic import AfterValidator

HALF_CHARACTER = "has half a character (such as \\ud83d)"
LONGEST_TEXT = 1000  # words
MOST_BYTES = 8 * LONGEST_TEXT  # a script without blanks has no words to count


def _sayable(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(HALF_CHARACTER) from None
    if (count := len(text.split())) > LONGEST_TEXT:
        raise ValueError(f"has {count} words, more than {LONGEST_TEXT}; shorten it")
    if size > MOST_BYTES:
        raise ValueError(f"has {size} bytes, more than {MOST_BYTES}; shorten it")
    return text


Text = Annotated[str, AfterValidator(_sayable)]
