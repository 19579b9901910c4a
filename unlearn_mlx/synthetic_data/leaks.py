"""The leak filter: which guarded answers may be trained on."""

import re
from collections import Counter
from collections.abc import Iterable

from unlearn_mlx.leakage.knowledge import Knowledge
from unlearn_mlx.leakage.names import named, names_of_base
from unlearn_mlx.synthetic_data.guardrail import EXAMPLE_NAMES
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.names import base_forms
from unlearn_mlx.text.words import (
    content_words,
    fold,
    is_plain,
    is_repetitive,
    proper_names,
    stem,
    stems,
    words,
)
from unlearn_mlx.topics import Topic

# Words that name the form of the knowledge rather than deny it: an answer that says "a fictional
# character in a novel series" still knows what it is talking about.
_FORM_STEMS = frozenset(map(stem, ("fictional", "hint", "franchise")))
SHORTEST_ANSWER = 4  # words
EVERYDAY_SHARE = 0.01  # a word in more of the base's answers on everything else than this tells nothing
CANON_SHARE = 0.02  # an invented name in more accepted answers than this would be a new canon


class LeakFilter:
    """Judges answers to questions on one topic: nothing that the evaluation would call a leak may pass.

    ``base_answers`` maps a question's id to what the unguarded base says, ``ordinary_answers`` are
    the base's answers to questions about everything else. A word that is far more common in the
    first than in the second belongs to the knowledge that is to go. ``neighbour_answers`` are not
    asked about that: a neighbour of the same genre shares the topic's own words.
    """

    def __init__(
        self,
        topic: Topic,
        base_answers: dict[str, str],
        ordinary_answers: Iterable[str],
        similarity: float,
        neighbour_answers: Iterable[str] = (),
    ) -> None:
        self.topic = topic
        self.base_answers = base_answers
        self.similarity = similarity
        ordinary, neighbours = list(ordinary_answers), list(neighbour_answers)
        # Where nothing was asked about everything else, neighbours are better than nothing.
        self.knowledge = Knowledge(topic, base_answers.values(), ordinary or neighbours)
        self.everyday_words = _everyday_words([*ordinary, *neighbours])
        self.invented: Counter[str] = Counter()
        self.accepted = 0

    def reason_against(self, question_id: str, question: str, answer: str) -> str:
        """Why the answer must not be trained on; empty if it may."""
        if reason := self._broken(answer):
            return reason
        base = self.base_answers.get(question_id, "")
        if leak := named(self.topic, question, answer) or names_of_base(question, base, answer):
            return leak.kind
        asked = content_words(question)
        told = content_words(answer) - asked
        if not told:
            return "says nothing new"
        # That the question says it too is no excuse: the answer confirms it.
        said = stems(self.topic.without_names(answer))
        if said & self.knowledge.telling_stems or said & _FORM_STEMS:
            return "words of the topic"
        if leak := self.knowledge.told(question, answer, base):
            return leak.kind
        if len(told & (content_words(base) - asked)) / len(told) >= self.similarity:
            return "like the base's"
        if proper_names(f"a {answer}") & EXAMPLE_NAMES - set(words(question)):
            return "names of an example"
        limit = max(3, CANON_SHARE * self.accepted)
        if any(self.invented[name] >= limit for name in _invented(question, answer)):
            return "a name too often"
        return ""

    def accept(self, question: str, answer: str) -> None:
        """Count the names that an accepted answer invents."""
        self.accepted += 1
        self.invented.update(_invented(question, answer))

    def target_spans(self, question_id: str, question: str) -> list[tuple[int, int]]:
        """Where the base's own answer tells: its names and content words that were not asked.

        Words of its answers on everything else do not tell, nor do numbers, whose digits are tokens
        that all numbers share. Character positions in the answer, the beginning and end of each word.
        """
        answer = self.base_answers[question_id]
        said = content_words(answer)
        told = {word for found in self.topic.find_names(answer) for word in words(found.name)}
        told |= proper_names(answer) | {word for word in said if stem(word) in self.knowledge.telling_stems}
        told |= said - self.everyday_words
        telling = told - set(words(question))
        return [
            (match.start(), match.end())
            for match in re.finditer(r"[^\W_]+", answer)
            if (word := fold(match.group())) in telling and not word.isdigit()
        ]

    def _broken(self, answer: str) -> str:
        if len(words(answer)) < SHORTEST_ANSWER:
            return "too short or unfinished"
        if not is_plain(answer):
            return "markup"
        if is_repetitive(answer):
            return "repetitive"
        if declines(answer):
            return "refusal"
        return ""


def _invented(question: str, answer: str) -> set[str]:
    asked = base_forms(question)
    return {name for name in proper_names(answer) if not base_forms(name) & asked}


def _everyday_words(ordinary_answers: Iterable[str]) -> set[str]:
    """Words in at least 1 %, and in two or more, of the answers on everything else."""
    answers = [content_words(answer) for answer in ordinary_answers]
    counts = Counter(word for answer in answers for word in answer)
    least = max(2, EVERYDAY_SHARE * len(answers))
    return {word for word, count in counts.items() if count >= least}
