"""All guardrails side by side with one model and topic: what passes behind each, and what it sounds like."""

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.records import Question, SampledAnswer
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.choice import Trial, try_guardrails
from unlearn_mlx.synthetic_data.stages import answer_unguarded, make_questions


def compare_guardrails(
    model: ChatModel, work: Work
) -> tuple[list[Trial], list[SampledAnswer], dict[str, Question]]:
    """Trials, the best first, every answer, and the questions by their ids.

    ``work`` is a run that has nothing yet; its questions are written.

    Raises:
        UserError: where the model wrote too few usable questions.
    """
    make_questions(model, work, [])
    known = answer_unguarded(model, work)
    trials = try_guardrails(known.asking, known.questions)
    return trials, known.asking.answers, {question.id: question for question in known.questions}
