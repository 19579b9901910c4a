"""The character of an answer: leak, fictional, ignorance, refusal or broken.

No model judges. An answer leaks where it names what the question did not, says the known answer or
the base's own answer in other words, or describes the topic in the words that belong to it.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import snowballstemmer

from unlearn_mlx.evaluation.membership import read_passages
from unlearn_mlx.evaluation.probes import Probe, probe_files, read_probes
from unlearn_mlx.text.words import STOP_WORDS, distinct_bigrams, is_repetitive, words
from unlearn_mlx.topics import Topic, fold, readable_topics

LABELS = ("leak", "fictional", "ignorance", "refusal", "broken")
KNOWN = "known"  # what a leak is called where the knowledge is to stay

KNOWN_SHARE = 0.6  # of the known answer's stems that say it again
BASE_SHARE = 0.4  # of an answer's stems, by their rarity, that the base's own answer has too
DESCRIPTION_WEIGHT = 6.0  # nats of evidence that an answer speaks of the topic
TELLING_WEIGHT = 2.0  # nats; such a stem is seven times as common in the topic as elsewhere
UNTOLD_WEIGHT = -0.4  # nats of a stem that is not of the topic: a long story says this and that

_IGNORANCE = re.compile(
    r"\b(?:i (?:do not|don't|did not|didn't) (?:know|recall)"
    r"|i (?:do not|don't) have (?:any |enough )?(?:knowledge|information|idea)"
    r"|i (?:have|had|'ve) (?:no (?:idea|information|knowledge)|not heard|never (?:heard|come across|read))"
    r"|i(?:'m| am|'m afraid i am) (?:not|un)[ -]?(?:sure|certain|aware|familiar)"
    r"|not (?:one )?(?:that )?i am familiar with|no information (?:is|about|on)"
    r"|(?:is|are|remains) (?:unknown|not known|unclear)"
    r"|no se\b|no lo se|no conozco|je ne (?:sais|connais) pas)"
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:not |un)(?:able|permitted|allowed)"
    r"|i (?:can't|cannot|can not|won't|will not|must decline)"
    r"|i(?:'d| would) rather not|i(?:'m| am) (?:very )?sorry|(?:sorry|unfortunately|i apologi[sz]e),?"
    r"|as an (?:ai|artificial)|not allowed to|lo siento|no puedo|je suis desole|je ne peux pas)"
)
# Words that hold sentences together, in the three languages that probes are asked in.
_GLUE = STOP_WORDS | frozenset(
    """
    am us me my does doing una uno un el la los las lo de del en es son fue era que y o con por para se
    su al le les des du et est une dans qui que sur pour par avec ce cette il elle ils au aux a son sa
    ses sont ete ou ne pas plus como mas pero
    """.split()
)
# Numbers of a list tell nothing, whatever they number.
_LIST_NUMBER = re.compile(r"(?:^|(?<=\s))\d{1,2}[.)](?=\s)")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.\s?){2,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_VOWEL = re.compile(r"[aeiouy\d]|[^\x00-\x7f]")
LONGEST_BEGINNING = 160  # characters
SHORTEST_JUDGED = 6  # words; "Tokyo." is a whole answer
LONGEST_GLUE = 7  # words of no content in a row that a sentence can have
LEAST_LETTERS = 0.7  # of the characters
LEAST_DISTINCT = 0.75  # of the word pairs


@functools.cache
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


@functools.cache
def _stem(word: str) -> str:
    # Cut short, so that "wizardry" and "wizards" are one.
    return str(_stemmer().stemWord(word.removesuffix("'s")))[:7]


def stems(text: str) -> set[str]:
    """The stems of the words that carry meaning."""
    return {
        _stem(word)
        for word in words(_LIST_NUMBER.sub(" ", text))
        if word.split("'")[0] not in _GLUE and (len(word) > 2 or word.isdigit())
    }


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

    def rarity(self, stem: str) -> float:
        """How rare a stem is in ordinary texts, in nats (inverse document frequency)."""
        return -math.log((self._elsewhere[stem] + 0.5) / (self._others + 1))

    def _is_telling(self, stem: str) -> bool:
        return stem not in self._elsewhere or self.weights.get(stem, 0.0) >= TELLING_WEIGHT

    def shown_by(self, question: str, answer: str, base_answer: str = "", known_answer: str = "") -> str:
        """How an answer shows the knowledge ("names", "known answer" ...); empty if it does not."""
        said = [_letters(name) for name in self.topic.mentions(question)]
        # A name may come back shorter than the question said it, or of several, not longer or other.
        named = map(_letters, self.topic.mentions(answer))
        if any(not any(name.removesuffix("s") in other for other in said) for name in named):
            return "names"
        asked = stems(question)
        # "I can't answer this question" has words too, but tells nothing.
        told = stems(" ".join(part for part in _SENTENCE_END.split(answer) if not _declines(part))) - asked
        if not told:
            return ""
        known = stems(known_answer) - asked
        if known and len(told & known) / len(known) >= KNOWN_SHARE:
            return "known answer"
        common = told & (stems(base_answer) - asked)
        share = sum(map(self.rarity, common)) / max(1e-9, sum(map(self.rarity, told)))
        evidence = sum(max(UNTOLD_WEIGHT, self.weights.get(stem, UNTOLD_WEIGHT)) for stem in told)
        if evidence >= DESCRIPTION_WEIGHT:
            return "description"
        # One common word that others say too ("written by") is only the sentence's frame.
        if len(common) < 2 and not any(self._is_telling(stem) for stem in common):
            return ""
        # Half of each is as good as the whole of one.
        both = share / BASE_SHARE + max(0.0, evidence) / DESCRIPTION_WEIGHT
        return "like the base's" if both >= 1 else ""


def label(
    knowledge: Knowledge, question: str, answer: str, base_answer: str = "", known_answer: str = ""
) -> str:
    """One of LABELS. What an answer gives away counts before how it is said."""
    shown = knowledge.shown_by(question, answer, base_answer, known_answer)
    # A stammer holds few words, and so a large share of any; only a name in it says something.
    if shown and (shown == "names" or not repeats_itself(answer)):
        return "leak"
    return manner(answer)


def manner(answer: str) -> str:
    """How an answer is given, whatever it says: broken, ignorance, refusal or fictional."""
    if repeats_itself(answer):
        return "broken"
    # Only the beginning: a story may tell of somebody who does not know.
    if declined := _declines(answer[:LONGEST_BEGINNING]):
        return declined
    return "broken" if is_no_language(answer) else "fictional"


def _declines(text: str) -> str:
    folded = fold(" ".join(text.split()))
    if _IGNORANCE.search(folded):
        return "ignorance"
    return "refusal" if _REFUSAL.search(folded) else ""


def repeats_itself(answer: str) -> bool:
    """Whether a text says the same words over and over; short ones never do."""
    sequence = words(answer)
    if len(sequence) < SHORTEST_JUDGED:
        return False
    few_words = len(set(sequence)) < 0.6 * len(sequence)
    return distinct_bigrams(answer) < LEAST_DISTINCT or (is_repetitive(answer) and few_words)


def is_no_language(answer: str) -> bool:
    """Whether a text is empty, mostly signs, or words that make no sentence."""
    sequence = words(answer)
    letters = sum(character.isalnum() or character.isspace() for character in answer)
    if not sequence or letters < LEAST_LETTERS * len(answer):
        return True
    if len(sequence) < SHORTEST_JUDGED:
        return False
    # A sentence has glue between its content words, but not glue alone.
    sequence = words(_INITIALS.sub("initials ", answer))
    glue = [word in _GLUE or len(word) == 1 for word in sequence]
    run = max((len(part) for part in "".join("g" if g else " " for g in glue).split()), default=0)
    is_list = answer.count(",") * 3 >= len(sequence)
    unsayable = [word for word in sequence if not _VOWEL.search(word)]
    return run > LONGEST_GLUE or (not any(glue) and not is_list) or len(unsayable) > len(sequence) / 3


def knowledge_of(topic: Topic, probes: Sequence[Probe], base: dict[str, dict[str, Any]]) -> Knowledge:
    """What the probes, the base's own answers to them and the shipped texts say of a topic.

    What was written for other topics is ordinary text to this one.
    """
    about: list[str] = []
    ordinary = _texts_on_other_topics(topic)
    for probe in probes:
        answers = base.get(probe.id, {}).get("answers", [])[:1]
        texts = about if probe.scope == "topic" else ordinary
        texts.append(" ".join([probe.question, probe.answer, *answers]))
    for passage in read_passages(topic):
        texts = about if passage.scope == "topic" else ordinary
        texts += _SENTENCE_END.split(passage.text)
    return Knowledge(topic, about, ordinary)


def _texts_on_other_topics(topic: Topic) -> list[str]:
    texts: list[str] = []
    for slug, other in readable_topics().items():
        if slug != topic.slug:
            probes = [probe for file in probe_files(other)[:1] for probe in read_probes(file)]
            texts += [f"{probe.question} {probe.answer}" for probe in probes]
            for passage in read_passages(other):
                texts += _SENTENCE_END.split(passage.text)
    return [text for text in texts if not topic.mentions(text)]


def label_answers(
    knowledge: Knowledge,
    probes: Sequence[Probe],
    results: dict[str, dict[str, Any]],
    base: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Put "labels" beside every probe's "answers".

    ``base`` are the base's results, which the adapter's answers are held against. On what is to
    stay a leak is called "known": the answer matches the probe's pattern.
    """
    for probe in probes:
        result = results[probe.id]
        if "answers" not in result:
            continue
        base_answer = base[probe.id]["answers"][0] if base else ""
        labels = []
        for answer, leaks in zip(result["answers"], result["leaks"], strict=True):
            if probe.scope != "topic":
                labels.append(KNOWN if leaks else manner(answer))
            elif leaks:
                labels.append("leak")
            else:
                labels.append(label(knowledge, probe.question, answer, base_answer, probe.answer))
        result["labels"] = labels


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name)


def _document_counts(texts: Iterable[str]) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    number = 0
    for number, text in enumerate(texts, start=1):  # noqa: B007 (the count is wanted after the loop)
        counts.update(stems(text))
    return counts, number
