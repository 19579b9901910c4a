"""Retain rows for a mend, where the run has too few to hold its neighbours in place."""

from collections.abc import Sequence

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.records import TrainingRow
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.answers import base_answers
from unlearn_mlx.synthetic_data.dataset import training_row
from unlearn_mlx.synthetic_data.questions import retain_subjects, write_questions
from unlearn_mlx.synthetic_data.stages import general_subjects


def further_retain_rows(
    model: ChatModel, work: Work, known: Sequence[TrainingRow], wanted: int, probes: Sequence[str]
) -> list[TrainingRow]:
    """As many as are missing of ``wanted``: questions on the topic's neighbours, as the base answers them.

    None is near a probe or asks what the run's own rows ask.
    """
    missing = wanted - len(known)
    if missing <= 0:
        return []
    topic = work.run.topic
    questions, _ = write_questions(
        model,
        work,
        "questions",
        "neighbour",
        retain_subjects(topic.neighbours) or general_subjects(),
        missing,
        [*probes, *(row.messages[-2].content for row in known)],
        topic,
        about_topic=False,
    )
    answers = base_answers(model, work, "answers", "retain", questions)
    return [
        training_row(question, text, "retain", answers[question.id].finished)
        for question in questions
        if (text := answers[question.id].text.strip())
    ]
