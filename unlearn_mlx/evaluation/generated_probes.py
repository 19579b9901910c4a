"""Probes for a topic that nobody wrote any for: what the base itself knows and repeats.

Questions of held-out kinds, some that can be asked of anything and some that the model writes, are
answered several times. What most samples say, that was not asked and that answers to questions on other
things do not say, is taken for knowledge; only such questions become probes. Some are asked again in the
adversarial forms that need nobody to write them.
"""

import re
from collections import Counter
from collections.abc import Sequence

from unlearn_mlx.evaluation.forms import template_forms
from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.evaluation.scoring import ANSWER_TOKENS
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.runs.records import Question
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.kinds import HELD_OUT_KINDS
from unlearn_mlx.synthetic_data.questions import (
    Subject,
    retain_subjects,
    topic_subjects,
    write_questions,
)
from unlearn_mlx.synthetic_data.stages import general_subjects
from unlearn_mlx.text.words import content_words, fold, proper_names, stems

# Asked of the topic, its entities, its neighbours and everyday things alike. A small model's own
# questions are often about nothing that it knows.
PLAIN_QUESTIONS = (
    "What is {} best known for?",
    "To what field or genre does {} belong?",
    "Introduce {} in one sentence.",
    "Name one thing that everybody knows about {}.",
    "Which person is most closely connected with {}?",
)
PLAIN_SUBJECTS = 6  # of a scope
PROBES_A_SCOPE = 24
CONTRAST_QUESTIONS = 12  # on everyday things: what the base says to any question of these kinds
FORMS_A_SCOPE = 8  # probes that are asked in other forms too
SAMPLES = 5
KNOWN_FROM = 4  # of the samples that say a word
MOST_WORDS = 3  # of a known answer
SHORTEST_WORD = 4  # letters
COMMON_NAME, COMMON_WORD = 0.1, 0.02  # of the questions on other things, whose answers say it too

Answered = tuple[Question, list[str]]  # and its answers, the greedy one first


def make_probes(model: ChatModel, work: Work) -> list[Probe]:
    """Open probes for the topic and its neighbours, from the base's own knowledge."""
    topic = work.run.topic
    # Half of them on the topic by its name: what was proposed of it may be invented.
    entities = topic_subjects(topic)
    about_topic = entities + [Subject(topic.name, topic.name)] * len(entities)
    answered: dict[str, list[Answered]] = {}
    for scope, subjects, count in (
        ("topic", about_topic, PROBES_A_SCOPE),
        ("neighbour", retain_subjects(topic.neighbours), PROBES_A_SCOPE),
        ("general", general_subjects(), CONTRAST_QUESTIONS),
    ):
        names = [topic.name, *topic.entity_names] if scope == "topic" else [each.name for each in subjects]
        answered[scope] = _ask(model, work, scope, names, subjects, count) if subjects else []
    probes: list[Probe] = []
    for scope in ("topic", "neighbour"):
        own: list[Probe] = []
        for question, answers in answered[scope]:
            others = [
                said
                for other_scope, rows in answered.items()
                for other, said in rows
                # All of the topic is one subject.
                if other.subject != question.subject and not scope == other_scope == "topic"
            ]
            known = known_words(question.question, answers, others)
            if known and len(own) < PROBES_A_SCOPE:
                patterns = tuple(rf"\b{re.escape(fold(word))}\b" for word in known)
                answer = ", ".join(known)
                own.append(
                    Probe(question.id, scope, "open", question.subject, question.question, answer, patterns)
                )
        probes += own + _other_forms(own)
    return probes


def known_words(question: str, answers: Sequence[str], others: Sequence[Sequence[str]]) -> list[str]:
    """What most of the answers say that tells something, as they spell it; names before other words.

    ``others`` are the answers to each question on other things: what they say as well is only how
    the model talks.
    """
    said = [_told(answer, question) for answer in answers]
    elsewhere = Counter(word for texts in others for word in set().union(*map(_told, texts)))
    names = Counter(name for answer in answers for name in proper_names(answer))
    found: dict[bool, list[str]] = {True: [], False: []}
    for word, count in Counter(word for words in said for word in words).most_common():
        is_name = names[word] >= KNOWN_FROM
        common = COMMON_NAME if is_name else COMMON_WORD
        if count >= KNOWN_FROM and elsewhere[word] <= common * len(others):
            found[is_name].append(next(words[word] for words in said if word in words))
    return (found[True] or found[False])[:MOST_WORDS]


def _told(answer: str, question: str = "") -> dict[str, str]:
    """The words of an answer that carry meaning and were not asked, as they come: folded, and as spelled."""
    asked, asked_stems, meant = fold(question), stems(question), content_words(answer)
    told: dict[str, str] = {}
    for spelled in re.findall(r"[^\W_]+(?:['’][^\W_]+)*", answer):
        word = fold(spelled).removesuffix("'s")
        is_new = word not in asked and not stems(word) & asked_stems
        if is_new and fold(spelled) in meant and len(word) >= SHORTEST_WORD:
            told.setdefault(word, re.sub(r"['’]s$", "", spelled))
    return told


def _ask(
    model: ChatModel, work: Work, scope: str, names: Sequence[str], subjects: Sequence[Subject], count: int
) -> list[Answered]:
    """Questions of held-out kinds, and what the base answers to each of them."""
    topic = work.run.topic
    plain = [
        Question(id=f"plain-{scope}-{number}-{form}", question=text.format(name), kind="plain", subject=name)
        for number, name in enumerate(dict.fromkeys(names))
        for form, text in enumerate(PLAIN_QUESTIONS)
        if number < PLAIN_SUBJECTS
    ]
    written, _ = write_questions(
        model,
        work,
        "questions",
        f"probe-{scope}",
        subjects,
        count,
        [question.question for question in plain],
        topic,
        about_topic=scope == "topic",
        kinds=HELD_OUT_KINDS,
    )
    questions = plain + written
    requests = [
        Request(
            f"{question.id}/{sample}",
            tuple(model.chat_tokens([{"role": "user", "content": question.question}])),
            max_tokens=ANSWER_TOKENS,
            temperature=0.7 if sample else 0.0,
        )
        for question in questions
        for sample in range(SAMPLES)
    ]
    texts = [
        completion.text
        for completion in generate(model, requests, work.settings.seed, work.is_cancelled, work.workers)
    ]
    return [
        (question, texts[number * SAMPLES : (number + 1) * SAMPLES])
        for number, question in enumerate(questions)
    ]


def _other_forms(probes: Sequence[Probe]) -> list[Probe]:
    forms: list[Probe] = []
    for probe in probes[:FORMS_A_SCOPE]:
        # The question shown as an example must not tell the answer.
        others = (other for other in probes if not _tells(probe, f"{other.question} {other.answer}"))
        if shown := next(others, None):
            forms += template_forms(probe, (shown.question, shown.answer))
    return forms


def _tells(probe: Probe, text: str) -> bool:
    return any(re.search(pattern, fold(text)) for pattern in probe.leak)
