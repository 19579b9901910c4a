"""Names and numbers in a text, however they are spelled.

Case, accents, hyphens, line breaks and the dots and blanks of initials do not matter, nor does a
possessive or plural ending of a name's last word. "7" is "seven", "1,997" is "1997".
"""

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from unlearn_mlx.text.words import NUMBER_WORDS, STOP_WORDS, begins_sentence, fold

# Scripts that put no blanks between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): a name in
# them stands between letters, so that each letter counts as a word.
_WITHOUT_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003134f"
)
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
_LETTER = rf"[^\W_{_WITHOUT_BLANKS}][{_MARKS}]*"
_TOKEN = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)"  # with commas between thousands
    r"|(?:(?<![\w.])\.(?=[^\W\d_]))?"  # .NET
    rf"(?:{_LETTER})+(?:'(?:{_LETTER})+)*(?:(?<=[^\W\d_])[+#]+(?!\w))?"  # C++
    rf"|(?=[^\W_])[{_WITHOUT_BLANKS}][{_MARKS}]*|&"
)
_CLUSTER = re.compile(rf".[{_MARKS}]*", re.DOTALL)  # a letter and its marks
# What may stand inside one name, beside what does in the list. A full stop only after an initial or a title.
_INSIDE = re.compile(r"[-\u2010-\u2015\u00b7\u2044/]?")
LONGEST_TITLE = 3  # letters, as in "Wm."
LONGEST_UNINFLECTED = 3  # letters: "gas" is no plural
_NO_PLURAL = ("ss", "us", "is")


@dataclass(frozen=True)
class Token:
    """A word or number of a text, and where it stands there: start and end."""

    start: int
    end: int
    word: str  # folded

    @property
    def letters(self) -> str:
        """The word within a longer name: number words as digits, no signs."""
        return _letters(self.word)

    @property
    def base_form(self) -> str:
        """What the word is compared by: without possessive and plural."""
        return _base_form(self.word)


@dataclass(frozen=True)
class FoundName:
    """A name that a text says: where, possessive included, and how the list of names spells it, folded."""

    start: int
    end: int
    name: str


# A text says few words many times, and a chat reads its answer anew with every word that comes.
@functools.lru_cache(maxsize=10_000)
def _letters(word: str) -> str:
    word = "and" if word == "&" else re.sub(r"[',]", "", word)
    return NUMBER_WORDS.get(word, word)


@functools.lru_cache(maxsize=10_000)
def _base_form(word: str) -> str:
    word = word.removesuffix("'s")
    return NUMBER_WORDS.get(word) or singular(re.sub(r"[',]", "", word))


def singular(word: str) -> str:
    """A folded word without a plural's ending. Any two spellings of one name give the same."""
    if len(word) <= LONGEST_UNINFLECTED or word.endswith(_NO_PLURAL):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    if word.endswith("s"):
        return word[:-1]
    # Latin: "animagi" of "animagus".
    return word[:-1] + "us" if word.endswith("i") and len(word) > 5 else word


def tokens(text: str) -> list[Token]:
    """The words and numbers of a text."""
    _, places, found = _tokens_of_folded(text)
    return [Token(places[token.start], _end(places, token), token.word) for token in found]


def _tokens_of_folded(text: str) -> tuple[str, list[int], list[Token]]:
    """The text folded, where each folded character begins in the text (and its end), and the tokens in it."""
    if text.isascii():
        folded = fold(text)
        return folded, list(range(len(text) + 1)), _tokens_in(folded)
    # Folding changes lengths, and a letter and its marks fold as one.
    clusters = [match.group() for match in _CLUSTER.finditer(text)]
    pieces = [fold(cluster) for cluster in clusters]
    starts = itertools.accumulate(map(len, clusters), initial=0)
    places = [place for place, piece in zip(starts, pieces, strict=False) for _ in piece]
    folded = "".join(pieces)
    return folded, [*places, len(text)], _tokens_in(folded)


def _tokens_in(folded: str) -> list[Token]:
    return [Token(match.start(), match.end(), match.group()) for match in _TOKEN.finditer(folded)]


def _end(places: list[int], token: Token) -> int:
    """Where a token of the folded text ends in the text itself: where the next letter begins."""
    return places[bisect.bisect_right(places, places[token.end - 1])]


class NameFinder:
    """Finds names in texts as whole words, the longest where several begin at one place."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: dict[str, str] = {}
        self._beginnings: set[str] = set()
        self._gaps: set[str] = set()
        for name in names:
            folded, _, found = _tokens_of_folded(name)
            # Only what these names have inside: a full stop after "K" says nothing of others.
            self._gaps |= {
                _gap(folded, *pair) for pair in itertools.pairwise(found) if not self._is_one(folded, *pair)
            }
            if not found:
                continue
            inner = "".join(token.letters for token in found[:-1])
            self._names.setdefault(inner + found[-1].base_form, fold(name))
            key = inner + found[-1].letters
            self._beginnings.update(key[:length] for length in range(1, len(key) + 1))

    def find(self, text: str) -> list[FoundName]:
        """The names that the text says, in the order it says them."""
        folded, places, said = _tokens_of_folded(text)
        found: list[FoundName] = []
        position = 0
        while position < len(said):
            last, name = self._longest(folded, said, position)
            if name:
                start, end = places[said[position].start], _end(places, said[last])
                found.append(FoundName(start, end, name))
            position = last + 1
        return found

    def _longest(self, folded: str, said: list[Token], first: int) -> tuple[int, str]:
        """The longest name that begins at a token, and the number of its last; that token and "" for none."""
        found, inner = (first, ""), ""
        for number in range(first, len(said)):
            if number > first and not self._is_one(folded, said[number - 1], said[number]):
                break
            if name := self._names.get(inner + said[number].base_form):
                found = number, name
            inner += said[number].letters
            if inner not in self._beginnings:
                break
        return found

    def _is_one(self, folded: str, token: Token, following: Token) -> bool:
        between = _gap(folded, token, following)
        if len(token.word) <= LONGEST_TITLE and between in (".", ""):
            return True
        return between in self._gaps or bool(_INSIDE.fullmatch(between))


def _gap(folded: str, token: Token, following: Token) -> str:
    return " ".join(folded[token.end : following.start].split())


def terms(text: str) -> list[tuple[Token, bool]]:
    """Every capitalised word and number of a text that may be a name, and whether it surely is one.

    A word that begins a sentence is capitalised whatever it is. "One" and "two", "first" and "second"
    say nothing as words.
    """
    listed: list[tuple[Token, bool]] = []
    for token in tokens(text):
        # "I'm" is no name, nor is a letter by itself.
        bare = token.word.split("'")[0]
        is_letter = len(bare) == 1 and not bare.isdigit()
        if bare in STOP_WORDS or bare in ("second", "zero") or is_letter:
            continue
        if token.word[0].isdigit() or token.word in NUMBER_WORDS:
            listed.append((token, True))
        elif text[token.start].isupper():
            listed.append((token, not begins_sentence(text, token.start)))
    return listed


def base_forms(text: str) -> set[str]:
    """What the words and numbers of a text are compared by."""
    return {token.base_form for token in tokens(text)}
