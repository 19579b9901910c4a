"""Where a served answer ends: before the first stop word, wherever the borders of its tokens fall.

mlx-lm's server compares token ids: a stop word that comes in other tokens than it has by itself would be cut
out of the answer, which would then go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any


class StopWords:
    """Text that may still become a stop word is held back until it cannot."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [word for word in words if word]
        self.held = ""

    def take(self, text: str, is_last: bool = False) -> tuple[str, bool]:
        """What may be shown now that ``text`` has come too, and whether a stop word ends it there."""
        text = self.held + text
        ends = [place for word in self.words if (place := text.find(word)) >= 0]
        if ends:
            self.held = ""
            return text[: min(ends)], True
        waiting = 0 if is_last else max((_begun(text, word) for word in self.words), default=0)
        self.held = text[len(text) - waiting :]
        return text[: len(text) - waiting], False


def until_stop(responses: Iterator[Any], words: Sequence[str]) -> Iterator[Any]:
    """mlx-lm's responses up to the first stop word."""
    stop = StopWords(words)
    for response in responses:
        shown, has_ended = stop.take(response.text, is_last=response.finish_reason is not None)
        # The handler drops the last text of an answer that stopped; it takes an end without a reason
        # for a stop too.
        reason = "length" if response.finish_reason == "length" and not has_ended else None
        yield replace(response, text=shown, finish_reason=reason)
        if has_ended:
            return


def _begun(text: str, word: str) -> int:
    """How many characters at the end of ``text`` a stop word starts with."""
    longest = min(len(text), len(word) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(word[:count])), 0)
