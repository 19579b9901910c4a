"""The character of an answer: leak, fictional, ignorance, refusal or broken.

No model judges. What a leak is, ``unlearn_mlx.leakage`` says; here is what every other answer is called.
"""

import re
from collections.abc import Sequence
from typing import Any

from unlearn_mlx.evaluation.membership import read_passages
from unlearn_mlx.evaluation.probes import Probe, probe_files, read_probes
from unlearn_mlx.leakage.knowledge import Knowledge
from unlearn_mlx.leakage.names import NAMES
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.words import GLUE, SENTENCE_END, distinct_bigrams, is_repetitive, words
from unlearn_mlx.topics import Topic, readable_topics

LABELS = ("leak", "fictional", "ignorance", "refusal", "broken")
KNOWN = "known"  # what a leak is called where the knowledge is to stay

_INITIALS = re.compile(r"\b(?:[^\W\d_]\.\s?){2,}")
_VOWEL = re.compile(r"[aeiouy\d]|[^\x00-\x7f]")
LONGEST_BEGINNING = 160  # characters
SHORTEST_JUDGED = 6  # words; "Tokyo." is a whole answer
LONGESTGLUE = 7  # words of no content in a row that a sentence can have
LEAST_LETTERS = 0.7  # of the characters
LEAST_DISTINCT = 0.75  # of the word pairs


def label(
    knowledge: Knowledge, question: str, answer: str, base_answer: str = "", known_answer: str = ""
) -> str:
    """One of LABELS. What an answer gives away counts before how it is said."""
    leak = knowledge.leak(question, answer, base_answer, known_answer)
    # A stammer holds few words, and so a large share of any; only a name in it says something.
    if leak and (leak.kind == NAMES or not repeats_itself(answer)):
        return "leak"
    return manner(answer)


def manner(answer: str) -> str:
    """How an answer is given, whatever it says: broken, ignorance, refusal or fictional."""
    if repeats_itself(answer):
        return "broken"
    # Only the beginning: a story may tell of somebody who does not know.
    if declined := declines(answer[:LONGEST_BEGINNING]):
        return declined
    return "broken" if is_no_language(answer) else "fictional"


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
    glue = [word in GLUE or len(word) == 1 for word in sequence]
    run = max((len(part) for part in "".join("g" if g else " " for g in glue).split()), default=0)
    is_list = answer.count(",") * 3 >= len(sequence)
    unsayable = [word for word in sequence if not _VOWEL.search(word)]
    return run > LONGESTGLUE or (not any(glue) and not is_list) or len(unsayable) > len(sequence) / 3


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
        texts += SENTENCE_END.split(passage.text)
    return Knowledge(topic, about, ordinary)


def _texts_on_other_topics(topic: Topic) -> list[str]:
    texts: list[str] = []
    for slug, other in readable_topics().items():
        if slug != topic.slug:
            probes = [probe for file in probe_files(other)[:1] for probe in read_probes(file)]
            texts += [f"{probe.question} {probe.answer}" for probe in probes]
            for passage in read_passages(other):
                texts += SENTENCE_END.split(passage.text)
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
