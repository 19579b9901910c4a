"""What an answer tells of a topic without naming anything: the known answer, the base's answer or a
description in other words."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from unlearn_mlx.leakage.names import DESCRIPTION, KNOWN_ANSWER, LIKE_BASE, Leak, named
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.names import tokens
from unlearn_mlx.text.words import SENTENCE_END, carries_meaning, stem, stems, without_list_numbers
from unlearn_mlx.topics import Topic

KNOWN_SHARE = 0.6  # of the known answer's stems that say it again
BASE_SHARE = 0.4  # of an answer's stems, by their rarity, that the base's own answer has too
DESCRIPTION_WEIGHT = 5.0  # nats of evidence that an answer speaks of the topic
TELLING_WEIGHT = 2.0  # nats; such a stem is seven times as common in the topic as elsewhere
ONCE_WEIGHT = 2.0  # nats at most of a stem that one text alone has: that may be chance
UNTOLD_WEIGHT = -0.4  # nats of a stem that is not of the topic: a story says this and that
LEAST_UNTOLD = -2.0  # nats at the least of all of them: length does not make an answer innocent
OFTEN, OFTEN_WEIGHT = 0.04, 1.2  # share of the texts on the topic, and nats: a word of its kind of thing
SOMETIMES = 0.0125  # share of the texts on the topic that have a word of its own
MOST_QUOTED = 3  # words in a reason


class Knowledge:
    """What an answer on one topic would give away.

    ``about`` are texts on the topic (its probes, the base's own answers), ``ordinary`` texts on
    everything near it that may stay. A stem's weight is the log of how much more of the first have
    it than of the second, as in naive Bayes.
    """

    def __init__(self, topic: Topic, about: Iterable[str], ordinary: Iterable[str]) -> None:
        self.topic = topic
        here, count = _document_counts([topic.description, *about])
        elsewhere, others = _document_counts(ordinary)
        self.weights = {
            stem: math.log((number + 0.5) / (count + 1)) - math.log((elsewhere[stem] + 0.5) / (others + 1))
            for stem, number in here.items()
        }
        self._elsewhere, self._others = elsewhere, others
        self._described = stems(topic.description)
        for once in {each for each in here if here[each] == 1} - self._described:
            self.weights[once] = min(self.weights[once], ONCE_WEIGHT)
        self._about, self._count = here, count

    @cached_property
    def telling_stems(self) -> set[str]:
        """Stems any one of which is enough to say that an answer knows what it speaks of."""
        often, sometimes = (max(3, share * self._count) for share in (OFTEN, SOMETIMES))
        return {
            stem
            for stem, weight in self.weights.items()
            if (self._about[stem] >= often and weight >= OFTEN_WEIGHT)
            or (self._about[stem] >= sometimes and weight >= TELLING_WEIGHT)
            or (stem in self._described and self._elsewhere[stem] == 0)
        }

    def rarity(self, stem: str) -> float:
        """How rare a stem is in ordinary texts, in nats (inverse document frequency)."""
        return -math.log((self._elsewhere[stem] + 0.5) / (self._others + 1))

    def leak(self, question: str, answer: str, base_answer: str = "", known_answer: str = "") -> Leak | None:
        """How an answer gives the topic away; None where it does not."""
        return named(self.topic, question, answer) or self.told(question, answer, base_answer, known_answer)

    def told(self, question: str, answer: str, base_answer: str = "", known_answer: str = "") -> Leak | None:
        """How an answer gives the topic away by other words than names; None where it does not."""
        asked = stems(question)
        # "I can't answer this question" has words too, but tells nothing.
        sentences = [stems(part) - asked for part in SENTENCE_END.split(answer) if not declines(part)]
        said = set().union(*sentences)
        if not said:
            return None
        known = stems(known_answer) - asked
        if known and len(said & known) / len(known) >= KNOWN_SHARE:
            return _leak(KNOWN_ANSWER, "says the known answer", answer, said & known)
        common = said & (stems(base_answer) - asked)
        share = sum(map(self.rarity, common)) / max(1e-9, sum(map(self.rarity, said)))
        evidence = max(map(self._evidence, [said, *sentences]))
        if evidence >= DESCRIPTION_WEIGHT:
            telling = {stem for stem in said if self.weights.get(stem, 0.0) >= TELLING_WEIGHT}
            return _leak(DESCRIPTION, DESCRIPTION, answer, telling)
        # One common word that others say too ("written by") is only the sentence's frame.
        if len(common) < 2 and not any(self._is_telling(stem) for stem in common):
            return None
        # Half of each is as good as the whole of one.
        if share / BASE_SHARE + max(0.0, evidence) / DESCRIPTION_WEIGHT < 1:
            return None
        return _leak(LIKE_BASE, "says what the base says", answer, common)

    def _evidence(self, said: set[str]) -> float:
        """How much speaks for it that who says this speaks of the topic, in nats."""
        weights = [self.weights.get(stem, UNTOLD_WEIGHT) for stem in said]
        untold = sum(max(UNTOLD_WEIGHT, weight) for weight in weights if weight < 0)
        return sum(weight for weight in weights if weight > 0) + max(LEAST_UNTOLD, untold)

    def _is_telling(self, stem: str) -> bool:
        return stem not in self._elsewhere or self.weights.get(stem, 0.0) >= TELLING_WEIGHT


def _leak(kind: str, what: str, answer: str, told: set[str]) -> Leak:
    places = [
        token
        for token in tokens(without_list_numbers(answer))
        if carries_meaning(token.word) and stem(token.word) in told
    ]
    quoted = dict.fromkeys(re.sub(r"'s$", "", token.word) for token in places)
    return Leak(
        kind,
        f"{what} ({', '.join(list(quoted)[:MOST_QUOTED])})" if quoted else what,
        tuple((token.start, token.end) for token in places),
    )


def _document_counts(texts: Iterable[str]) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    number = 0
    for number, text in enumerate(texts, start=1):  # noqa: B007 (the count is wanted after the loop)
        counts.update(stems(text))
    return counts, number
