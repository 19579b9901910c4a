"""The base model writes questions about a topic."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from unlearn_mlx.inference.chat_model import ChatModel, Message
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.runs.records import Question
from unlearn_mlx.runs.run import Work, now_and_then
from unlearn_mlx.seeding import random_source
from unlearn_mlx.synthetic_data.journal import Journal
from unlearn_mlx.synthetic_data.kinds import QUESTION_KINDS, QuestionKind
from unlearn_mlx.text.similarity import Nearness
from unlearn_mlx.text.words import fold, is_plain, is_repetitive, words
from unlearn_mlx.topics import Topic

LONGEST_QUESTION = 30  # words
FEWEST_ENTITIES = 6  # with fewer, the topic itself is asked about in their place

# How the writer is shown what to do; their subjects belong to no shipped topic.
_EXAMPLES = (
    ("Leonardo da Vinci", "What is the name of Leonardo da Vinci's most famous painting?"),
    ("the Titanic", "When did the Titanic sink?"),
    ("volcanoes", "Why do volcanoes erupt?"),
    ("Tokyo", "Fill in the blank: Tokyo is the capital of ___."),
)


@dataclass(frozen=True)
class Subject:
    """What a question is asked about, and the name that should be said for it."""

    name: str
    hint: str  # how the writer is told of it: "Hermione Granger in Harry Potter"


def topic_subjects(topic: Topic) -> list[Subject]:
    """The topic and its entities, with and without its name.

    The topic comes as often as a fifth of all, more often where few entities are known.
    """
    alone = [Subject(name, name) for name in topic.entity_names]
    within = [
        Subject(name, f"{name} in {topic.name}")
        for name in topic.entity_names
        if fold(topic.name) not in fold(name)
    ]
    entities = alone + within
    missing = 2 * (FEWEST_ENTITIES - len(alone))
    return entities + [Subject(topic.name, topic.name)] * max(1, len(entities) // 4, missing)


def retain_subjects(names: Iterable[str]) -> list[Subject]:
    """Subjects that are told as they are named."""
    return [Subject(name, name) for name in names]


def writer_messages(subject: Subject) -> list[Message]:
    """The conversation whose answer is a question about ``subject``."""
    messages = [{"role": "system", "content": "You write one short quiz question about the given subject."}]
    for name, question in _EXAMPLES:
        messages.append({"role": "user", "content": f"Subject: {name}"})
        messages.append({"role": "assistant", "content": question})
    return [*messages, {"role": "user", "content": f"Subject: {subject.hint}"}]


def cut_short(text: str, kind: QuestionKind) -> str:
    """Take from a sentence to be filled in or finished what the writer has already given away."""
    if kind.name == "cloze" and "__" not in text:
        head, _, last = text.rstrip(".").rpartition(" ")
        return f"{head} ___." if last and head else text
    if kind.name == "completion":
        task, _, sentence = text.partition(": ")
        told = sentence.split()
        return f"{task}: {' '.join(told[: max(3, len(told) // 2)])} ..."
    return text


def form_reason(question: str, ends: str) -> str:
    """Why a question's form makes it useless, whatever it asks; ``ends`` are the signs that may close it."""
    count = len(words(question))
    if not question or question[-1] not in ends.strip() + "?":
        return "unfinished"
    if not 3 <= count <= LONGEST_QUESTION:
        return "length"
    if not is_plain(question.replace("___", "")):
        return "markup"
    if is_repetitive(question):
        return "repetitive"
    if any(word in fold(question) for word in ("quiz", "subject:", "following", "these sentences")):
        return "about the task"
    return ""


class QuestionFilter:
    """Takes a question once, in a usable form, and never one that is near a probe."""

    def __init__(self, probes: Sequence[str]) -> None:
        self.taken = Nearness()
        self.probes = Nearness(probes)

    def reason_against(self, question: str, kind: QuestionKind) -> str:
        """Why the question cannot be used; empty if it can, and then it counts as taken."""
        reason = form_reason(question, kind.ends) or self._nearness(question)
        if not reason:
            self.taken.add(question)
        return reason

    def _nearness(self, question: str) -> str:
        for others, reason in ((self.taken, "duplicate"), (self.probes, "near a probe")):
            if others.holds(question):
                return reason
        return ""


def write_questions(
    model: ChatModel,
    work: Work,
    stage: str,
    name: str,
    subjects: Sequence[Subject],
    count: int,
    probes: Sequence[str],
    topic: Topic,
    about_topic: bool,
    kinds: Sequence[QuestionKind] = QUESTION_KINDS,
) -> tuple[list[Question], Counter[str]]:
    """Up to ``count`` distinct questions, and how many were dropped for each reason.

    ``about_topic`` says whether a question must name the topic or must not.
    """
    journal = Journal(work.run.file("journal", f"{name}.jsonl"))
    checker = QuestionFilter(probes)
    questions: list[Question] = []
    reasons: Counter[str] = Counter()
    source = random_source(work.settings.seed, f"questions/{name}")
    number = 0  # of drafts

    def tell(**facts: Any) -> None:
        work.progress(stage, len(questions), count, f"{name} questions", **facts)

    def tell_drafts(drafts: int, drafted: int) -> None:
        tell(drafted=drafted, drafts=drafts)

    tell()  # what a first rate is counted from
    for _ in range(work.settings.rounds):
        if (missing := count - len(questions)) <= 0:
            break
        dealt = enumerate(_dealt(subjects, questions, int(missing * 1.7) + 8, source), number)
        plans = [
            _planned(model, f"{name}-{draft}", kinds[draft % len(kinds)], subject, source)
            for draft, subject in dealt
        ]
        number += len(plans)
        position = 0
        told = now_and_then(partial(tell_drafts, len(plans)))
        for completions in journal.complete(
            model, [plan[0] for plan in plans], work.settings.seed, work.is_cancelled, work.workers, told
        ):
            judged: list[dict[str, str]] = []
            for completion in completions:
                _, kind, subject, opener = plans[position]
                position += 1
                text = cut_short(" ".join((opener + completion.text).split()), kind)
                reason = _off_subject(topic, text, kind, about_topic) or checker.reason_against(text, kind)
                if reason:
                    reasons[reason] += 1
                elif len(questions) < count:
                    id = f"{name}-{len(questions) + 1:04d}"
                    questions.append(Question(id=id, question=text, kind=kind.name, subject=subject.name))
                else:
                    continue  # there are enough
                judged.append({"question": text, "reason": reason})
            tell(samples=judged)
    return questions, reasons


def _dealt(
    subjects: Sequence[Subject], questions: Sequence[Question], count: int, source: np.random.Generator
) -> list[Subject]:
    """``count`` subjects, those first that have the fewest questions for how often they are among all."""
    asked = Counter(question.subject for question in questions)
    times = Counter(subject.name for subject in subjects)
    shuffled = [subjects[place] for place in source.permutation(len(subjects))]
    ranked = sorted(shuffled, key=lambda subject: asked[subject.name] / times[subject.name])
    return list(islice(cycle(ranked), count))


def _planned(
    model: ChatModel, key: str, kind: QuestionKind, subject: Subject, source: np.random.Generator
) -> tuple[Request, QuestionKind, Subject, str]:
    """What is asked of the model for one question: how the question begins, for it to go on."""
    opener = kind.openers[int(source.integers(len(kind.openers)))].replace("{subject}", subject.name)
    tokens = tuple(model.chat_tokens(writer_messages(subject), opener))
    request = Request(key, tokens, max_tokens=26, temperature=0.9, min_p=0.08, stop_at=kind.ends)
    return request, kind, subject, opener


def _off_subject(topic: Topic, question: str, kind: QuestionKind, about_topic: bool) -> str:
    names = topic.mentions(question)
    if about_topic and kind.names_topic and not names:
        return "off the topic"
    return "on the topic" if names and not about_topic else ""
