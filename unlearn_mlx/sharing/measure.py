"""What was exported, measured again: rounding to few bits can bring knowledge back."""

from dataclasses import dataclass

from unlearn_mlx.evaluation.keys import answers_in, answers_in_words
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.evaluation.schema import evaluation_of, open_leak
from unlearn_mlx.evaluation.scoring import score_probes
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.run import Run

TOLERANCE = 0.05  # how much the leak rate may rise before it is said: sampling alone moves it a little


@dataclass(frozen=True)
class Leak:
    """The share of open questions on the topic that leak in any answer, before and after an export.

    ``base`` and ``adapter`` are the evaluation's own "open leak", over as many ``answers`` a question.
    """

    base: float
    adapter: float
    exported: float
    questions: int
    back: tuple[str, ...]  # questions that the adapter kept to itself and the export does not
    answers: int = 1

    @property
    def is_back(self) -> bool:
        """Whether the export brought knowledge back."""
        return self.exported > self.adapter + TOLERANCE

    def words(self) -> str:
        """One line for the user."""
        line = (
            f"open leak of the export, in {answers_in_words(self.answers)}: {self.exported:.0%} of "
            f"{self.questions} open questions on the topic (adapter {self.adapter:.0%}, base {self.base:.0%})"
        )
        if self.is_back:
            line += ". Rounding brought knowledge back: export with more bits, or train with a higher scale"
        return line


def measure_leak(model: ChatModel, run: Run) -> Leak | None:
    """Ask an exported model the questions of the evaluation's "open leak" again; None where there are none.

    Questions, seeds and samples are the evaluation's own, so that only the weights differ.
    """
    evaluation = evaluation_of(run.path)
    if evaluation is None:
        return None
    key = open_leak(evaluation)
    known = {probe.id: probe for probe in evaluation.probes}
    probes = [probe for probe in (row.probe() for row in known.values()) if _is_plain(probe)]
    if key is None or not probes:
        return None
    answers = answers_in(key) or 1
    results = score_probes(model, probes, answers - 1, run.settings.seed, lambda *_: None, lambda: False)
    leaked = [probe for probe in probes if results[probe.id]["leaked"]]
    return Leak(
        evaluation.base[key],
        evaluation.adapter.get(key, 0.0),
        len(leaked) / len(probes),
        len(probes),
        tuple(probe.question for probe in leaked if not known[probe.id].adapter.leaked),
        answers,
    )


def _is_plain(probe: Probe) -> bool:
    """Whether a probe is one of the "open leak": the topic's, asked plainly."""
    return probe.scope == "topic" and probe.form == QUESTION_ANSWER and bool(probe.leak)
