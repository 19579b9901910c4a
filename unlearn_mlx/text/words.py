"""What makes a line of a model's text usable: whole, plain, not repetitive."""

import functools
import itertools
import re
import unicodedata
from typing import Any

import snowballstemmer

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_CLOSE = re.compile(r"[.!?][\"')\]”’]*(?=\s|$)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")  # what stands between two sentences
# An initial or a title before the dot does not end a sentence.
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|vs|etc))\.$")

# Scripts in which a mark over a letter is left out by many who write it. Elsewhere it makes another letter.
_OPTIONAL_MARKS = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW")

# Words that hold sentences together.
FUNCTION_WORDS = frozenset(
    """
    a am an and any are as at be been by can could did do does doing for from had has have he her his i
    in into is it its me my of on or she that the their them these they this those to us was we were
    will with would you your
    """.split()
)
# Words of the task that a question is put as.
TASK_WORDS = frozenset("blank complete fill finish name sentence".split())
# Words that any two texts may share without being about the same thing.
COMMON_WORDS = frozenset(
    """
    about after all also because before being between both but called during each famous first how if
    just known like made make makes many may more most much name named new no not off one only other
    our out over own people person place s same several should so some such than then there through
    two under up use used very way well what when where which while who whose why year years
    """.split()
)
# Probes are asked in Spanish and French too.
FOREIGN_FUNCTION_WORDS = frozenset(
    """
    una uno un el la los las lo de del en es son fue era que y o con por para se su al le les des du et
    est une dans qui que sur pour par avec ce cette il elle ils au aux a son sa ses sont ete ou ne pas
    plus como mas pero
    """.split()
)
# What a definition is held together by, whatever it defines, and how a model begins any answer.
FRAME_WORDS = frozenset(
    """
    actually allow allows answer answers commonly common consist consists contain contains describe
    described describes example form general generally however include includes including kind mean
    means often particular particularly refer refers sort term terms thing things type types typical
    typically usual usually various
    """.split()
)
STOP_WORDS = FUNCTION_WORDS | COMMON_WORDS | FRAME_WORDS
GLUE = STOP_WORDS | FOREIGN_FUNCTION_WORDS

_CARDINALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_ORDINAL_ENDINGS = {1: "st", 2: "nd", 3: "rd"}
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_CARDINALS)} | {
    word: f"{number}{_ORDINAL_ENDINGS.get(number, 'th')}" for number, word in enumerate(_ORDINALS, start=1)
}
# Numbers of a list tell nothing, whatever they number.
_LIST_NUMBER = re.compile(r"(?:^|(?<=\s))\d{1,2}[.)](?=\s)")
STEM_LENGTH = 7  # cut short, so that "wizardry" and "wizards" are one


@functools.lru_cache(maxsize=4096)
def _has_optional_marks(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_OPTIONAL_MARKS)


def fold(text: str) -> str:
    """Lower case without accents, for comparing."""
    text = text.replace("\u2019", "'")
    if text.isascii():
        return text.lower()
    kept: list[str] = []
    base = ""  # the letter that a mark belongs to
    for character in unicodedata.normalize("NFKD", text):
        if not unicodedata.combining(character):
            base = character
        elif not base or _has_optional_marks(base):
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept)).casefold()


def words(text: str) -> list[str]:
    """The words of a text, folded."""
    return [fold(word) for word in _WORD.findall(text)]


def content_words(text: str) -> set[str]:
    """The words that carry meaning."""
    return {word for word in words(text) if word not in STOP_WORDS and len(word) > 2}


@functools.cache
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


@functools.cache
def stem(word: str) -> str:
    """A folded word without possessive and endings; a number word up to twelve as digits."""
    word = word.removesuffix("'s")
    return NUMBER_WORDS.get(word) or str(_stemmer().stemWord(word))[:STEM_LENGTH]


def stems(text: str) -> set[str]:
    """The stems of the words that carry meaning."""
    return {stem(word) for word in words(without_list_numbers(text)) if carries_meaning(word)}


def carries_meaning(word: str) -> bool:
    """Whether a folded word says something by itself."""
    return word.split("'")[0] not in GLUE and (len(word) > 2 or word.isdigit())


def without_list_numbers(text: str) -> str:
    """The text with blanks in place of the numbers of a list ("1.", "2)"), every other sign in its place."""
    return _LIST_NUMBER.sub(lambda match: " " * len(match[0]), text)


def proper_names(text: str) -> set[str]:
    """Capitalised words that do not begin a sentence, and numbers, folded."""
    names = set()
    for match in _WORD.finditer(text):
        word = match.group()
        if word.isdigit() or (word[0].isupper() and not begins_sentence(text, match.start())):
            names.add(fold(word).removesuffix("'s"))
    return names - STOP_WORDS


def begins_sentence(text: str, position: int) -> bool:
    """Whether a word at this position is the first of its sentence, where it is capitalised anyway."""
    before = text[:position].rstrip("\"'“‘( ")
    return not before or before[-1] in ".!?:\n"


def whole_sentences(text: str) -> str:
    """The text up to its last finished sentence, in one line; empty if none is finished."""
    line = " ".join(text.split())
    end = 0
    for match in _SENTENCE_CLOSE.finditer(line):
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
