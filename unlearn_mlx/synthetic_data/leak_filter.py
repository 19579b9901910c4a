"""The leak filter: which guarded answers may be trained on."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from unlearn_mlx.leakage.knowledge import Knowledge
from unlearn_mlx.leakage.names import named, names_of_base
from unlearn_mlx.synthetic_data.guardrail import EXAMPLE_NAMES
from unlearn_mlx.synthetic_data.recall import Recalled
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.names import base_forms, tokens
from unlearn_mlx.text.words import (
    carries_meaning,
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
_COPULAS = frozenset("is are was were be".split())
SHORTEST_BEGINNING = 5  # letters
PLAIN_WEIGHT = 3.2  # nats: a word 25 times as common in the topic as elsewhere says by itself what it is
EVERYDAY_SHARE = 0.01  # a word in more of the base's answers on everything else than this tells nothing
COMMON_SHARE = 0.0125  # a word in more of the answers on everything else says nothing of one entity
CANON_SHARE = 0.02  # an invented name in more accepted answers than this would be a new canon


class LeakFilter:
    """Judges answers to questions on one topic: nothing that the evaluation would call a leak may pass.

    ``base_answers`` maps a question's id to what the unguarded base says, ``ordinary_answers`` are
    the base's answers to questions about everything else. A word that is far more common in the
    first than in the second belongs to the knowledge that is to go; ``recalled`` adds to both.
    ``neighbour_answers`` are not asked about that: a neighbour of the same genre shares the topic's own
    words. ``questions`` are what the base answered, by id.
    """

    def __init__(
        self,
        topic: Topic,
        base_answers: dict[str, str],
        ordinary_answers: Iterable[str],
        similarity: float,
        neighbour_answers: Iterable[str] = (),
        questions: Mapping[str, str] | None = None,
        recalled: Recalled | None = None,
    ) -> None:
        self.topic = topic
        self.base_answers = base_answers
        self.similarity = similarity
        ordinary, neighbours = list(ordinary_answers), list(neighbour_answers)
        # Where nothing was asked about everything else, neighbours are better than nothing.
        recalled = recalled or Recalled([], [])
        self.knowledge = Knowledge(
            topic, [*base_answers.values(), *recalled.topic], [*(ordinary or neighbours), *recalled.ordinary]
        )
        described = {stem(word) for word in re.findall(r"\b[^\W\d_A-Z]\w*", topic.description)}
        self._name_stems = stems(" ".join(topic.names)) - described
        self._own_names = self.topic.mentions("\n\n".join([topic.name, *topic.aliases]))
        everything = [*ordinary, *neighbours]
        counts = Counter(stem for text in everything for stem in stems(text))
        self._common_stems = {
            stem for stem, count in counts.items() if count > max(1, COMMON_SHARE * len(everything))
        }
        self._told_of = self._told_by_name(questions or {})
        self.everyday_words = _everyday_words([*ordinary, *neighbours])
        self.invented: Counter[str] = Counter()
        self.accepted = 0

    def reason_against(self, question_id: str, question: str, answer: str, hint: str = "") -> str:
        """Why the answer must not be trained on; empty if it may.

        Words of the ``hint`` that the question carried tell nothing of the topic.
        """
        if reason := self._broken(answer):
            return reason
        base = self.base_answers.get(question_id, "")
        if leak := named(self.topic, question, answer) or names_of_base(question, base, answer):
            return leak.kind
        asked = content_words(question)
        told = content_words(answer) - asked
        if not told:
            return "says nothing new"
        if self._words_of_topic(question, answer, hint):
            return "words of the topic"
        if leak := self.knowledge.told(question, answer, base):
            return leak.kind
        if self._told_before(question, answer):
            return "told of it before"
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

    def target_spans(self, question: str, answer: str) -> list[tuple[int, int]]:
        """Where an answer that leaks tells: its names and content words that were not asked.

        Words of its answers on everything else do not tell, nor do numbers, whose digits are tokens
        that all numbers share. Character positions in the answer, the beginning and end of each word.
        """
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

    def _words_of_topic(self, question: str, answer: str, hint: str) -> bool:
        """Whether an answer says a word of the topic's kind, beside its names.

        What the question said may come back as what the answer is about ("The main character is a
        clock"), not as what is said of that, and not where it tells by itself what the topic is.
        """
        asked, given, is_about = stems(question), stems(hint), True
        text = self.topic.without_names(answer)
        for token in tokens(text):
            is_about = is_about and token.word not in _COPULAS
            said = stem(token.word)
            # "Lord" in a made-up name is not the topic's lord.
            in_name = said in self._name_stems and text[token.start].isupper()
            if not carries_meaning(token.word) or in_name or said in given:
                continue
            is_about = is_about and said in asked
            if said in _FORM_STEMS:
                return True
            # "Frenchman" tells no less than "French".
            telling = [part for part in _beginnings(said) if part in self.knowledge.telling_stems]
            if any(not is_about or self.knowledge.weights[part] >= PLAIN_WEIGHT for part in telling):
                return True
        return False

    def _told_by_name(self, questions: Mapping[str, str]) -> dict[str, set[str]]:
        """For each entity of the topic, the words in what the base asks and says about it.

        Words of many of its answers on everything else are left out.
        """
        told: defaultdict[str, set[str]] = defaultdict(set)
        for id, question in questions.items():
            for name in self.topic.mentions(question) - self._own_names:
                told[name] |= stems(question) | stems(self.base_answers.get(id, ""))
        return {name: said - self._common_stems for name, said in told.items()}

    def _told_before(self, question: str, answer: str) -> bool:
        """Whether an answer says a rare word that the base says of the same thing, in whatever answer."""
        told = stems(self.topic.without_names(answer)) - stems(question)
        return any(told & self._told_of.get(name, set()) for name in self.topic.mentions(question))

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


def _beginnings(stem: str) -> list[str]:
    """A stem and its beginnings that are long enough to be a word."""
    return [stem, *(stem[:length] for length in range(SHORTEST_BEGINNING, len(stem)))]


def _invented(question: str, answer: str) -> set[str]:
    asked = base_forms(question)
    return {name for name in proper_names(answer) if not base_forms(name) & asked}


def _everyday_words(ordinary_answers: Iterable[str]) -> set[str]:
    """Words in at least 1 %, and in two or more, of the answers on everything else."""
    answers = [content_words(answer) for answer in ordinary_answers]
    counts = Counter(word for answer in answers for word in answer)
    least = max(2, EVERYDAY_SHARE * len(answers))
    return {word for word, count in counts.items() if count >= least}
