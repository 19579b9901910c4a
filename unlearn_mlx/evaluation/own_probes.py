"""Probes for a topic that nobody wrote any for: what the base itself knows and repeats.

Questions of held-out kinds are answered several times; an answer's telling words that come back in
most samples are taken for knowledge, and only such questions become probes.
"""

import re
from collections import Counter

from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.language_model.generation import Request, generate
from unlearn_mlx.runs import Work
from unlearn_mlx.synthetic_data.kinds import HELD_OUT_KINDS
from unlearn_mlx.synthetic_data.questions import retain_subjects, topic_subjects, write_questions
from unlearn_mlx.synthetic_data.text import content_words

PROBES_A_SCOPE = 24
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
    return probes
