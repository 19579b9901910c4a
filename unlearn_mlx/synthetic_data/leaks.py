"""The leak filter: which guarded answers may be trained on."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from unlearn_mlx.synthetic_data.guardrail import EXAMPLE_NAMES
from unlearn_mlx.text.words import content_words, is_plain, is_repetitive, proper_names, words
from unlearn_mlx.topics import Topic, fold

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|not (?:sure|aware|able|familiar)|an? (?:ai|language|assistant))"
    r"|i (?:do not|don't|cannot|can't)|as an ai|(?:un)?fortunately,? i|no information"
    r"|(?:is|are) not (?:a )?(?:known|real)|never heard|does(?: not|n't) exist"
    r"|do not (?:know|have)|don't (?:know|have)|unknown|unclear|not possible to)\b"
)
# Words that name the form of the knowledge rather than deny it: an answer that says "a fictional
# character in a novel series" still knows what it is talking about.
_FORM_WORDS = frozenset({"fictional", "hint", "hints", "franchise"})
SHORTEST_ANSWER = 4  # words
COMMON_SHARE = 0.04  # a word in more of the base's answers than this is part of what it knows
EVERYDAY_SHARE = 0.01  # a word in more of the base's answers on everything else than this tells nothing
CANON_SHARE = 0.02  # an invented name in more accepted answers than this would be a new canon


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer or says that it does not know."""
    return bool(_REFUSAL.search(fold(text)))


def shows_knowledge(topic: Topic, question: str, base_answer: str, answer: str) -> str:
    """How an answer shows the knowledge that is to go; empty if it does not.

    It names something of the topic that the question did not, or a name or number from what the
    unguarded base says to the same question.
    """
    said = topic.mentions(question)
    # A name may come back shorter than the question said it, not longer or other.
    if any(not any(name in other for other in said) for name in topic.mentions(answer)):
        return "names the topic's"
    if (proper_names(answer) - set(words(question))) & proper_names(base_answer):
        return "names the base's"
    return ""


class LeakFilter:
    """Judges answers to questions on one topic.

    ``base_answers`` maps a question's id to what the unguarded base says, ``ordinary_answers`` are
    the base's answers to questions about everything else. A word that is far more common in the
    first than in the second belongs to the knowledge that is to go.
    """

    def __init__(
        self, topic: Topic, base_answers: dict[str, str], ordinary_answers: Iterable[str], similarity: float
    ) -> None:
        self.topic = topic
        self.base_answers = base_answers
        self.base_words = {id: content_words(answer) for id, answer in base_answers.items()}
        self.similarity = similarity
        ordinary = [content_words(answer) for answer in ordinary_answers]
        self.knowledge_words = _knowledge_words(list(self.base_words.values()), ordinary)
        self.everyday_words = _everyday_words(ordinary)
        self.invented: Counter[str] = Counter()
        self.accepted = 0

    def reason_against(self, question_id: str, question: str, answer: str) -> str:
        """Why the answer must not be trained on; empty if it may."""
        if reason := self._broken(answer):
            return reason
        if reason := shows_knowledge(self.topic, question, self.base_answers.get(question_id, ""), answer):
            return reason
        asked = content_words(question)
        told = content_words(answer) - asked
        if not told:
            return "says nothing new"
        if told & self.knowledge_words or told & _FORM_WORDS:
            return "words of the topic"
        names = proper_names(answer) - set(words(question))
        base = self.base_words.get(question_id, set()) - asked
        if len(told & base) / len(told) >= self.similarity:
            return "like the base's"
        if proper_names(f"a {answer}") & EXAMPLE_NAMES - set(words(question)):
            return "names of an example"
        limit = max(3, CANON_SHARE * self.accepted)
        if any(self.invented[name] >= limit for name in names):
            return "a name too often"
        return ""

    def accept(self, question: str, answer: str) -> None:
        """Count the names that an accepted answer invents."""
        self.accepted += 1
        self.invented.update(proper_names(answer) - set(words(question)))

    def target_spans(self, question_id: str, question: str) -> list[tuple[int, int]]:
        """Where the base's own answer tells: its names and content words that were not asked.

        Words of its answers on everything else do not tell, nor do numbers, whose digits are tokens
        that all numbers share. Character positions in the answer, the beginning and end of each word.
        """
        answer = self.base_answers[question_id]
        said = content_words(answer)
        told = {word for name in self.topic.mentions(answer) for word in words(name)}
        told |= proper_names(answer) | said & self.knowledge_words
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
        if is_refusal(answer):
            return "refusal"
        return ""


def _knowledge_words(base_answers: Sequence[set[str]], ordinary_answers: Sequence[set[str]]) -> set[str]:
    """Words in at least 4 % of the base's answers, and five times as common as elsewhere."""
    here = Counter(word for answer in base_answers for word in answer)
    elsewhere = Counter(word for answer in ordinary_answers for word in answer)
    least = max(3, COMMON_SHARE * len(base_answers))
    ordinary_count = max(1, len(ordinary_answers))
    return {
        word
        for word, count in here.items()
        if count >= least and count / len(base_answers) >= 5 * elsewhere[word] / ordinary_count
    }


def _everyday_words(ordinary_answers: Sequence[set[str]]) -> set[str]:
    """Words in at least 1 %, and in two or more, of the answers on everything else."""
    counts = Counter(word for answer in ordinary_answers for word in answer)
    least = max(2, EVERYDAY_SHARE * len(ordinary_answers))
    return {word for word, count in counts.items() if count >= least}
