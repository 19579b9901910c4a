"""Which guardrails work with a model: each is tried on some of the run's own questions."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from unlearn_mlx.runs.records import Question, SampledAnswer
from unlearn_mlx.synthetic_data.answers import GuardedAnswers
from unlearn_mlx.synthetic_data.guardrail import GUARDRAILS, Guardrail
from unlearn_mlx.text.words import distinct_bigrams, words

TRIED = 24  # questions
AS_GOOD = 0.8  # of the best score, from which a guardrail takes its turn beside the best


@dataclass(frozen=True)
class Trial:
    """How a guardrail did."""

    name: str
    asked: int
    passed: int
    distinct: float  # share of different word pairs in what passed, taken together
    words: float  # median of an accepted answer

    @property
    def pass_rate(self) -> float:
        """The share of answers that the filter accepted."""
        return self.passed / max(1, self.asked)

    @property
    def score(self) -> float:
        """What guardrails are compared by: many accepted answers that do not all say the same."""
        return self.pass_rate * self.distinct


def try_guardrails(asking: GuardedAnswers, questions: Sequence[Question]) -> list[Trial]:
    """Ask some of the questions behind every guardrail, the best one first.

    What is accepted counts as an answer to its question.
    """
    step = max(1, len(questions) // TRIED)
    chosen = questions[::step][:TRIED]
    trials = []
    for guardrail in GUARDRAILS.values():
        plans = [(question, guardrail, f"trial-{guardrail.name}-{question.id}") for question in chosen]
        trials.append(trial_of(guardrail.name, asking.ask(plans, 0, len(GUARDRAILS) * len(chosen))))
    return sorted(trials, key=lambda trial: -trial.score)


def trial_of(name: str, answers: Sequence[SampledAnswer]) -> Trial:
    """What a guardrail's answers show."""
    passed = [answer.answer for answer in answers if answer.accepted]
    return Trial(
        name,
        len(answers),
        len(passed),
        distinct_bigrams(" ".join(passed)) if passed else 0.0,
        statistics.median(len(words(text)) for text in passed) if passed else 0.0,
    )


def best_guardrails(trials: Sequence[Trial]) -> list[Guardrail]:
    """The best guardrail and those that are about as good."""
    least = AS_GOOD * max(trial.score for trial in trials)
    return [GUARDRAILS[trial.name] for trial in trials if trial.score >= least]


def trial_sentence(trials: Sequence[Trial], chosen: Sequence[Guardrail]) -> str:
    """The choice in one line."""
    rates = {trial.name: trial.pass_rate for trial in trials}
    taken = [guardrail.name for guardrail in chosen]
    others = ", ".join(f"{name} {rate:.0%}" for name, rate in rates.items() if name not in taken)
    said = ", ".join(f"{name}, {rates[name]:.0%} pass" for name in taken)
    return f"guardrail: {said}" + (f" (others: {others})" if others else "")


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """The trials as the manifest and the event hold them."""
    return [asdict(trial) for trial in trials]
