"""The two stages of data: questions, then answers and training rows, each readable on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion
from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.files import write_json, write_rows
from unlearn_mlx.runs.records import Question, RetainQuestion, RetainRow, read_records
from unlearn_mlx.runs.run import Work
from unlearn_mlx.seeding import random_source
from unlearn_mlx.synthetic_data.acceptance import acceptance
from unlearn_mlx.synthetic_data.answers import GuardedAnswers, answer_limit, base_answers, guarded_answers
from unlearn_mlx.synthetic_data.choice import best_guardrails, trial_rows, trial_sentence, try_guardrails
from unlearn_mlx.synthetic_data.coverage import coverage_sentence
from unlearn_mlx.synthetic_data.dataset import write_dataset
from unlearn_mlx.synthetic_data.edits import apply_edits, hand_questions, pairs_of, read_edits
from unlearn_mlx.synthetic_data.guardrail import AUTO, Guardrail, named_guardrail
from unlearn_mlx.synthetic_data.leak_filter import LeakFilter
from unlearn_mlx.synthetic_data.questions import (
    Subject,
    retain_subjects,
    topic_subjects,
    write_questions,
)
from unlearn_mlx.synthetic_data.recall import recall
from unlearn_mlx.text.similarity import Nearness
from unlearn_mlx.topics import Topic

LEAST_SHARE = 0.25  # of the wanted questions; with fewer, training would not reach the topic


def make_questions(model: ChatModel, work: Work, probes: Sequence[str]) -> None:
    """Write questions.jsonl and retain_questions.jsonl.

    ``probes`` are the evaluation's questions, which none may be near.

    Raises:
        UserError: where the model wrote too few usable questions.
    """
    topic, settings = work.run.topic, work.settings
    questions, reasons = write_questions(
        model,
        work,
        "questions",
        "topic",
        topic_subjects(topic),
        settings.questions,
        probes,
        topic,
        about_topic=True,
    )
    if len(questions) < max(4, LEAST_SHARE * settings.questions):
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        raise UserError(
            f"only {len(questions)} of {settings.questions} questions could be used ({why}): "
            f"add entities to {work.run.file('topic.toml')} or raise --rounds"
        )
    if len(questions) < settings.questions:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        work.run.event(
            "questions", "message", text=f"{len(questions)} of {settings.questions} questions; dropped: {why}"
        )
    covered = coverage_sentence(topic, questions)
    if covered:
        work.run.event("questions", "message", text=covered)
    retain: list[RetainQuestion] = []
    for part, count in (("neighbour", settings.neighbours), ("general", settings.general)):
        subjects = retain_subjects(topic.neighbours) if part == "neighbour" else general_subjects()
        if count and subjects:
            written, _ = write_questions(
                model, work, "questions", part, subjects, count, probes, topic, about_topic=False
            )
            retain += [RetainQuestion(**question.as_row(), part=part) for question in written]
    told = everyday_instructions(topic, probes, settings.instructions, settings.seed)
    retain += [RetainQuestion(**question.as_row(), part="instruction") for question in told]
    write_rows(work.run.file("retain_questions.jsonl"), [question.as_row() for question in retain])
    # The last file of the stage: where it is, the stage is whole.
    write_rows(work.run.file("questions.jsonl"), [question.as_row() for question in questions])
    write_json(work.run.file("journal", "questions-dropped.json"), dict(reasons))


@dataclass(frozen=True)
class KnownAnswers:
    """What the base itself answers to a run's questions, and what asks for guarded answers against it."""

    questions: list[Question]
    base: dict[str, str]  # a question's id to the base's answer
    retain: list[RetainRow]
    asking: GuardedAnswers


def answer_unguarded(model: ChatModel, work: Work) -> KnownAnswers:
    """Ask the base a run's questions, without a guardrail.

    Raises:
        UserError: before any work where a row is damaged or too long.
    """
    run = work.run
    questions = read_records(run.file("questions.jsonl"), Question)
    retain_questions = read_records(run.file("retain_questions.jsonl"), RetainQuestion)
    base = base_answers(model, work, "answers", "base", questions)
    kept = base_answers(model, work, "answers", "retain", retain_questions)
    retain = [
        RetainRow(**question.as_row(), answer=text, complete=kept[question.id].finished)
        for question in retain_questions
        if (text := kept[question.id].text.strip())
    ]
    near, far = (
        [row.answer for row in retain if (row.part == "neighbour") is is_near] for is_near in (True, False)
    )
    texts = _texts(base)
    asked = {question.id: question.question for question in questions}
    recalled = recall(model, work, "answers", run.topic, [subject.name for subject in general_subjects()])
    leaks = LeakFilter(run.topic, texts, far, work.settings.similarity, near, asked, recalled)
    limit = answer_limit(list(base.values()))
    return KnownAnswers(
        questions, texts, retain, GuardedAnswers(model, work, "answers", run.topic, leaks, limit)
    )


def make_answers(model: ChatModel, work: Work) -> None:
    """Write answers.jsonl, retain.jsonl and the dataset.

    Raises:
        UserError: before any work where a row is damaged or too long, and where too few answers passed.
    """
    run = work.run
    edits = read_edits(run.path)
    known = answer_unguarded(model, work)
    questions, base, leaks = known.questions, known.base, known.asking.leaks
    answers = guarded_answers(known.asking, questions, _guardrails(known.asking, questions))
    accepted = sum(answer.accepted for answer in answers)
    if accepted < max(4, LEAST_SHARE * len(questions)):
        raise UserError(
            f"only {accepted} answers passed the leak filter: raise --rounds or --similarity, "
            f"or see the reasons in {run.file('answers.jsonl')}"
        )
    pairs = apply_edits(pairs_of(questions, answers), edits)
    by_hand = hand_questions(pairs)
    if by_hand:
        base.update(
            _texts(base_answers(model, work, "answers", "hand", by_hand))
        )  # the filter looks here too
    rows = [{"question_id": id, "answer": text} for id, text in base.items()]
    write_rows(run.file("base_answers.jsonl"), rows)
    write_rows(run.file("retain.jsonl"), [row.as_row() for row in known.retain])
    write_rows(run.file("answers.jsonl"), [answer.as_row() for answer in answers])
    every = [*questions, *by_hand]
    telling = {question.id: leaks.target_spans(question.question, base[question.id]) for question in every}
    seed = work.settings.seed
    write_dataset(run.file("dataset"), every, pairs, base, telling, known.retain, seed)
    run.event(
        "answers", "acceptance", **acceptance(questions, answers), words=sorted(leaks.knowledge.telling_stems)
    )


def _texts(answers: Mapping[str, Completion]) -> dict[str, str]:
    return {id: completion.text.strip() for id, completion in answers.items()}


def _guardrails(asking: GuardedAnswers, questions: Sequence[Question]) -> list[Guardrail]:
    """The one that was asked for, or those that do best on some of the questions."""
    run, wanted = asking.work.run, asking.work.settings.guardrail
    if wanted != AUTO:
        return [named_guardrail(wanted)]
    trials = try_guardrails(asking, questions)
    chosen = best_guardrails(trials)
    run.manifest.guardrails = [each.name for each in chosen]
    run.save_manifest()
    run.event("answers", "message", text=trial_sentence(trials, chosen))
    run.event("answers", "guardrails", trials=trial_rows(trials), chosen=[each.name for each in chosen])
    return chosen


def general_subjects() -> list[Subject]:
    """Subjects of everyday life and knowledge."""
    lines = (DATA / "general-subjects.txt").read_text(encoding="utf-8").splitlines()
    return retain_subjects(line for line in lines if line.strip())


def everyday_instructions(topic: Topic, probes: Sequence[str], count: int, seed: int) -> list[Question]:
    """Up to ``count`` instructions of everyday life, drawn by the seed: none on the topic or near a probe."""
    lines = (DATA / "everyday-instructions.txt").read_text(encoding="utf-8").splitlines()
    asked = Nearness(probes)
    usable = [line for line in lines if line.strip() and not topic.mentions(line) and not asked.holds(line)]
    order = random_source(seed, "questions/instruction").permutation(len(usable))
    return [
        Question(id=f"instruction-{number:04d}", question=usable[place], kind="instruction", subject="")
        for number, place in enumerate(order[:count], start=1)
    ]
