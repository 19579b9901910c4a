"""How near two questions are, in their letters and in what they ask.

Both the filter of training questions and the evaluation's check use it: no probe may be near a
question that was trained on.
"""

import re
from collections.abc import Iterable

from rapidfuzz import fuzz, process

from unlearn_mlx.text.words import FUNCTION_WORDS, TASK_WORDS, fold, words

NEAR_DUPLICATE = 88  # of 100
# A question counts as asked twice where four in five of its units are the same.
_SAME_UNITS = 0.8

# What a question asks for: "Which owl" and "What owl" ask for the same.
_ASKED = {
    **dict.fromkeys(("what", "which"), "?what"),
    **dict.fromkeys(("who", "whom", "whose"), "?who"),
    **{word: f"?{word}" for word in ("when", "where", "why", "how")},
}
_UNASKED = FUNCTION_WORDS | TASK_WORDS
# Capitalised words that follow one another, with small words between them, are one name.
_NAME = re.compile(
    r"[^\W\d_a-z][\w'’.-]*(?:\s+(?:(?:of|the|and|to|from|de|la|du)\s+){0,2}[^\W\d_a-z][\w'’.-]*)+"
)


def units(question: str) -> frozenset[str]:
    """What a question is made of: the word it asks with, names as one unit each, other content words.

    A long name must not make two questions about the same thing near: it counts once.
    """
    found = set()
    names = []

    def take(match: re.Match[str]) -> str:
        parts = words(match.group())
        # The question's first word is capitalised without being part of the name.
        while parts and (parts[0] in _ASKED or parts[0] in _UNASKED):
            names.append(parts.pop(0))
        if parts:
            found.add(" ".join(part.removesuffix("'s") for part in parts))
        return " "

    rest = _NAME.sub(take, question.replace("\u2019", "'"))
    for word in [*names, *words(rest)]:
        word = word.removesuffix("'s")
        if word in _ASKED:
            found.add(_ASKED[word])
        elif word not in _UNASKED and len(word) > 1:
            found.add(word.removesuffix("s") if len(word) > 3 else word)
    return frozenset(found)


class Nearness:
    """Texts that others are compared with."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: list[str] = []
        self._folded: list[str] = []
        self._units: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare with this text too."""
        self.texts.append(text)
        self._folded.append(fold(text))
        self._units.append(units(text))

    def nearest(self, question: str) -> tuple[float, str]:
        """The similarity of the nearest text, 0 to 100, and that text; (0, "") where there is none.

        The similarity is the greater of rapidfuzz's token_sort_ratio and of the share of common units,
        scaled so that four in five are a near duplicate.
        """
        found = process.extractOne(fold(question), self._folded, scorer=fuzz.token_sort_ratio)
        best, index = (found[1], found[2]) if found else (0.0, -1)
        own = units(question)
        for number, other in enumerate(self._units):
            common = len(own & other)
            # A name alone is no question: "Tell me about the sea" and "The sea is" may both stay.
            if common < 2:
                continue
            similarity = min(100.0, NEAR_DUPLICATE / _SAME_UNITS * common / len(own | other))
            if similarity > best:
                best, index = similarity, number
        return (float(best), self.texts[index]) if index >= 0 else (0.0, "")

    def holds(self, question: str) -> bool:
        """Whether some text is a near duplicate of the question."""
        return self.nearest(question)[0] >= NEAR_DUPLICATE
