"""What makes a line of a model's text usable: whole, plain, not repetitive."""

import itertools
import re
import unicodedata

from unlearn_mlx.topics import fold

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*(?=\s|$)")
# An initial or a title before the dot does not end a sentence.
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|vs|etc))\.$")

STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be because been before being between both but by called
    can could did do does during each famous first for from had has have he her his how i if in into is
    it its just known like made make makes many may more most much name named new no not of off on one
    only or other our out over own people person place s same several she should so some such than that
    the their them then there these they this those through to two under up use used very was way we
    well were what when where which while who whose why will with would year years you your
    """.split()
)


def words(text: str) -> list[str]:
    """The words of a text, folded."""
    return [fold(word) for word in _WORD.findall(text)]


def content_words(text: str) -> set[str]:
    """The words that carry meaning."""
    return {word for word in words(text) if word not in STOP_WORDS and len(word) > 2}


def proper_names(text: str) -> set[str]:
    """Capitalised words that do not begin a sentence, and numbers, folded."""
    names = set()
    for match in _WORD.finditer(text):
        word = match.group()
        before = text[: match.start()].rstrip("\"'“‘( ")
        begins_sentence = not before or before[-1] in ".!?:\n"
        if word.isdigit() or (word[0].isupper() and not begins_sentence):
            names.add(fold(word).removesuffix("'s"))
    return names - STOP_WORDS


def whole_sentences(text: str) -> str:
    """The text up to its last finished sentence, in one line; empty if none is finished."""
    line = " ".join(text.split())
    end = 0
    for match in _SENTENCE_END.finditer(line):
        if not _ABBREVIATION.search(line[: match.start() + 1]):
            end = match.end()
    return line[:end]


def is_repetitive(text: str) -> bool:
    """Whether a word follows itself, or a run of three words comes back."""
    sequence = words(text)
    if any(a == b for a, b in itertools.pairwise(sequence)):
        return True
    runs = list(zip(sequence, sequence[1:], sequence[2:], strict=False))
    return len(set(runs)) < len(runs)


def distinct_bigrams(text: str) -> float:
    """Share of different word pairs among all (Li et al. 2016); 1 for texts of under two words."""
    sequence = words(text)
    pairs = list(itertools.pairwise(sequence))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def is_plain(text: str) -> bool:
    """Whether a text is made of ordinary letters and marks: no markup, control signs or odd scripts."""
    if re.search(r"[<>{}|\\^~`#*\[\]]|https?:", text):
        return False
    return all(unicodedata.category(c)[0] not in "CS" or c in "$%+=°" for c in text)
