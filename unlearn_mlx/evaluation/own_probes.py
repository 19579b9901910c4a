"""Probes for a topic that nobody wrote any for: what the base itself knows and repeats.

Questions of held-out kinds are answered several times; an answer's telling words that come back in
most samples are taken for knowledge, and only such questions become probes. Some are asked again in
the adversarial forms that need nobody to write them.
"""

import re
from collections import Counter
from collections.abc import Sequence

from unlearn_mlx.evaluation.forms import template_forms
from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.language_model.generation import Request, generate
from unlearn_mlx.runs import Work
from unlearn_mlx.synthetic_data.kinds import HELD_OUT_KINDS
from unlearn_mlx.synthetic_data.questions import retain_subjects, topic_subjects, write_questions
from unlearn_mlx.synthetic_data.text import content_words
from unlearn_mlx.topics import fold

PROBES_A_SCOPE = 24
FORMS_A_SCOPE = 8  # probes that are asked in other forms too
SAMPLES = 5
KNOWN_FROM = 4  # of the samples that say a word


def make_probes(model: ChatModel, work: Work) -> list[Probe]:
    """Open probes for the topic and its neighbours, from the base's own knowledge."""
    topic = work.run.topic
    probes: list[Probe] = []
    for scope, subjects in (
        ("topic", topic_subjects(topic)),
        ("neighbour", retain_subjects(topic.neighbours)),
    ):
        if not subjects:
            continue
        questions, _ = write_questions(
            model,
            work,
            "questions",
            f"probe-{scope}",
            subjects,
            2 * PROBES_A_SCOPE,
            [],
            topic,
            about_topic=scope == "topic",
            kinds=HELD_OUT_KINDS,
        )
        requests = [
            Request(
                f"{question.id}/{sample}",
                tuple(model.chat_tokens([{"role": "user", "content": question.question}])),
                max_tokens=30,
                temperature=0.7 if sample else 0.0,
            )
            for question in questions
            for sample in range(SAMPLES)
        ]
        completions = generate(model, requests, work.settings.seed, work.is_cancelled)
        for number, question in enumerate(questions):
            answers = completions[number * SAMPLES : (number + 1) * SAMPLES]
            asked = content_words(question.question)
            counts = Counter(word for answer in answers for word in content_words(answer.text) - asked)
            known = [word for word, count in counts.most_common(3) if count >= KNOWN_FROM and len(word) > 3]
            if known and len([p for p in probes if p.scope == scope]) < PROBES_A_SCOPE:
                patterns = tuple(rf"\b{re.escape(word)}\b" for word in known)
                probes.append(
                    Probe(
                        question.id,
                        scope,
                        "open",
                        question.subject,
                        question.question,
                        ", ".join(known),
                        patterns,
                    )
                )
    for scope in ("topic", "neighbour"):
        probes += _other_forms([probe for probe in probes if probe.scope == scope])
    return probes


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
