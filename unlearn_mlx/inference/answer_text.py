"""The text of an answer while its tokens come: no half characters, nothing of a stop word."""

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # what bytes decode to that are no whole character


class AnswerText:
    """Turns tokens into text that can be shown and never has to be taken back.

    Each step decodes the last few tokens alone, whatever the answer's length. ``before`` are the last
    tokens of a text that goes on: a blank between it and the answer is then the answer's.
    """

    def __init__(
        self, decoded: Callable[[Sequence[int]], str], stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        """``decoded`` is the text of tokens, with U+FFFD for a part of a character."""
        self._decoded = decoded
        self._tokens = list(before)  # the last ones shown, and those that wait for more
        self._shown = len(before)
        self._stop = StopWords(stop)
        self.length = 0  # of the text so far, with what a stop word may begin with

    def take(self, token: int) -> tuple[str, bool]:
        """What can be shown now that a token has come too, and whether a stop word ends the answer there."""
        self._tokens.append(token)
        text = self._waiting()
        if not text or text.endswith(HALF):
            return "", False
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        self.length += len(text)
        return self._stop.take(text)

    def finish(self) -> str:
        """What was held back, where the answer ends here; half a character is left out."""
        return self._stop.take(self._waiting().rstrip(HALF), is_last=True)[0]

    def _waiting(self) -> str:
        return self._decoded(self._tokens)[len(self._decoded(self._tokens[: self._shown])) :]


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


def _begun(text: str, word: str) -> int:
    """How many characters at the end of ``text`` a stop word starts with."""
    longest = min(len(text), len(word) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(word[:count])), 0)
