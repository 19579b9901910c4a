"""Guarded answers: the base model answers as if it had never heard of the topic, until no leak is left."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.runs.records import Question, SampledAnswer
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.guardrail import VARIANTS, guarded_messages, hint_for
from unlearn_mlx.synthetic_data.journal import Journal
from unlearn_mlx.synthetic_data.leak_filter import LeakFilter
from unlearn_mlx.text.words import whole_sentences
from unlearn_mlx.topics import Topic


def base_answers(
    model: ChatModel, work: Work, stage: str, name: str, questions: Sequence[Question]
) -> dict[str, tuple[str, bool]]:
    """What the base model itself answers, greedily: question id to text, and whether it ended there."""
    journal = Journal(work.run.file("journal", f"{name}.jsonl"))
    requests = [
        Request(
            f"{name}-{question.id}",
            tuple(model.chat_tokens([{"role": "user", "content": question.question}])),
            max_tokens=work.settings.answer_tokens,
        )
        for question in questions
    ]
    answers: dict[str, tuple[str, bool]] = {}
    for completions in journal.complete(model, requests, work.settings.seed, work.is_cancelled, work.workers):
        for completion in completions:
            question = questions[len(answers)]
            answers[question.id] = (completion.text.strip(), completion.finished)
        work.progress(stage, len(answers), len(questions), f"{name} answers")
    return answers


def guarded_answers(
    model: ChatModel, work: Work, stage: str, topic: Topic, questions: Sequence[Question], leaks: LeakFilter
) -> list[SampledAnswer]:
    """Every sampled answer, until each question has enough accepted ones or the rounds are over."""
    settings = work.settings
    journal = Journal(work.run.file("journal", "guarded.jsonl"))
    answers: list[SampledAnswer] = []
    accepted: Counter[str] = Counter()
    texts: defaultdict[str, set[str]] = defaultdict(set)
    wanted = settings.answers * len(questions)
    for round_number in range(settings.rounds):
        plans = [
            (question, number)
            for question in questions
            for number in range(settings.answers - accepted[question.id])
        ]
        # One variant of the prefix at a time: its cache is filled once for all of its questions.
        by_variant: defaultdict[int, list[tuple[Question, Request]]] = defaultdict(list)
        for position, (question, number) in enumerate(plans):
            # Two variants a round: more would leave each too few rows for a full batch.
            variant = (2 * round_number + position % 2) % VARIANTS
            key = f"guarded-{question.id}-{round_number}-{number}"
            hint = hint_for(question.question, key, settings.seed)
            tokens = model.chat_tokens(guarded_messages(question.question, topic.name, variant, hint))
            by_variant[variant].append(
                (
                    question,
                    Request(
                        key, tuple(tokens), settings.answer_tokens, settings.temperature, 0.05, stop_at="\n"
                    ),
                )
            )
        for variant in sorted(by_variant):
            asked = by_variant[variant]
            position = 0
            for completions in journal.complete(
                model, [r for _, r in asked], settings.seed, work.is_cancelled, work.workers
            ):
                shown = []
                for completion in completions:
                    question = asked[position][0]
                    position += 1
                    text = whole_sentences(completion.text)
                    reason = leaks.reason_against(question.id, question.question, text)
                    if not reason and text in texts[question.id]:
                        reason = "said before"
                    if not reason:
                        accepted[question.id] += 1
                        texts[question.id].add(text)
                        leaks.accept(question.question, text)
                    answers.append(_answer(question, text or completion.text, reason, round_number))
                    said = " ".join(completion.text.split())  # of what has no whole sentence, what there is
                    shown.append({"question": question.question, "answer": text or said, "reason": reason})
                work.progress(stage, sum(accepted.values()), wanted, "guarded answers", samples=shown)
    return answers


def _answer(question: Question, text: str, reason: str, round_number: int) -> SampledAnswer:
    return SampledAnswer(
        question_id=question.id, answer=text, accepted=not reason, reason=reason, round=round_number
    )
