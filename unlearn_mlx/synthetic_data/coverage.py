"""Which of a topic's names the questions ask about: what nobody asks about is not forgotten."""

from collections.abc import Iterable, Sequence

from unlearn_mlx.runs.records import Question
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import ENTITY_KINDS, Topic

SHOWN = 6  # names


def questions_by_name(topic: Topic, questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions that say each of the topic's names, by the folded name."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        for name in topic.mentions(question.question):
            found.setdefault(name, []).append(question)
    return found


def times_asked(topic: Topic, questions: Sequence[Question]) -> dict[str, int]:
    """How many questions say each of the topic's entities, in whatever spelling, or were written about it."""
    named = questions_by_name(topic, questions)
    times = {}
    for kind in ENTITY_KINDS:
        for name, others in topic.entities.get(kind, {}).items():
            asked = {each.id for spelling in (name, *others) for each in named.get(fold(spelling), [])}
            times[name] = len(asked | {each.id for each in questions if each.subject == name})
    return times


def coverage_sentence(topic: Topic, questions: Sequence[Question]) -> str:
    """How far the questions reach, in one line; empty for a topic without entities."""
    times = times_asked(topic, questions)
    if not times:
        return ""
    missing = [name for name, count in times.items() if not count]
    twice = sum(count > 1 for count in times.values())
    sentence = f"{len(times) - len(missing)} of {len(times)} names are asked about, {twice} more than once"
    if not missing:
        return sentence
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"{sentence}; not: {', '.join(missing[:SHOWN])}{more}"
