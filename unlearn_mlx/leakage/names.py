"""Which names and numbers an answer says that its question did not."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_mlx.text.names import base_forms, terms, tokens
from unlearn_mlx.text.words import fold, stem, without_list_numbers
from unlearn_mlx.topics import Topic

NAMES, BASE_NAMES, KNOWN_ANSWER = "names the topic's", "names the base's", "the known answer"
DESCRIPTION, LIKE_BASE = "describes the topic", "like the base's"


@dataclass(frozen=True)
class Leak:
    """One way in which an answer gives the topic away.

    ``kind`` is one of this module's constants, ``reason`` says it of this answer ("names Hogwarts"),
    ``spans`` are where in the answer: start and end of each place.
    """

    kind: str
    reason: str
    spans: tuple[tuple[int, int], ...]


def named(topic: Topic, question: str, answer: str) -> Leak | None:
    """The topic's names that an answer says and its question did not.

    A name may come back shorter than the question said it, or inflected, not longer or as another.
    """
    asked = [found.name for found in topic.find_names(question)]
    spans = tuple(
        (found.start, found.end)
        for found in topic.find_names(answer)
        if not any(_comes_back(found.name, name) for name in asked)
    )
    return _leak(NAMES, answer, spans)


def names_of_base(question: str, base_answer: str, answer: str) -> Leak | None:
    """The names and numbers of any kind that an answer shares with the base's own, unasked.

    One of the two must have the name where no sentence begins: there every word is capitalised.
    """
    asked, base = base_forms(question), _terms(base_answer)
    spans = tuple(
        (token.start, token.end)
        for token, is_sure in terms(without_list_numbers(answer))
        if token.base_form not in asked and token.base_form in base and (is_sure or base[token.base_form])
    )
    return _leak(BASE_NAMES, answer, spans)


def says_pattern(patterns: Sequence[str], answer: str) -> bool:
    """Whether an answer matches one of the regular expressions that show a piece of knowledge."""
    folded = fold(answer)
    return any(re.search(pattern, folded, re.IGNORECASE) for pattern in patterns)


def _leak(kind: str, answer: str, spans: tuple[tuple[int, int], ...]) -> Leak | None:
    if not spans:
        return None
    said = dict.fromkeys(" ".join(re.sub(r"['\u2019]s$", "", answer[a:b]).split()) for a, b in spans)
    return Leak(kind, f"names {', '.join(said)}", spans)


def _terms(text: str) -> dict[str, bool]:
    """What a text names, and whether that is surely a name."""
    found: dict[str, bool] = {}
    for token, is_sure in terms(without_list_numbers(text)):
        found[token.base_form] = found.get(token.base_form, False) or is_sure
    return found


def _parts(name: str) -> list[str]:
    return [token.letters for token in tokens(name)[:-1]] + [token.base_form for token in tokens(name)[-1:]]


@functools.lru_cache(maxsize=10_000)
def _comes_back(name: str, asked: str) -> bool:
    """Whether a name is an asked one with words left out, letters in a row of it, or other endings."""
    parts, whole = _parts(name), _parts(asked)
    rest = iter(whole)
    if "".join(parts) in "".join(whole) or all(part in rest for part in parts):
        return True
    said = [stem(token.word) for token in tokens(name)]
    return said == [stem(token.word) for token in tokens(asked)]
