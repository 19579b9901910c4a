"""What was exported, measured again: rounding to few bits can bring knowledge back."""

from dataclasses import dataclass

from unlearn_mlx.evaluation.schema import read_evaluation
from unlearn_mlx.evaluation.scoring import score_probes
from unlearn_mlx.evaluation.stage import asked_probes
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.run import Run

TOLERANCE = 0.05  # how much the leak rate may rise before it is said: sampling alone moves it a little


@dataclass(frozen=True)
class Leak:
    """The share of open questions on the topic that leak in any answer, before and after an export."""

    base: float
    adapter: float
    exported: float
    questions: int
    back: tuple[str, ...]  # questions that the adapter kept to itself and the export does not

    @property
    def is_back(self) -> bool:
        """Whether the export brought knowledge back."""
        return self.exported > self.adapter + TOLERANCE

    def words(self) -> str:
        """One line for the user."""
        line = (
            f"leak of the export: {self.exported:.0%} of {self.questions} open questions on the topic "
            f"(adapter {self.adapter:.0%}, base {self.base:.0%})"
        )
        if self.is_back:
            line += ". Rounding brought knowledge back: export with more bits, or train with a higher scale"
        return line


def measure_leak(model: ChatModel, run: Run) -> Leak | None:
    """Ask an exported model the run's open questions again; None where the run has no evaluation.

    Seeds and samples are the evaluation's own, so that only the weights differ.
    """
    if not run.file("evaluation.json").exists():
        return None
    known = {probe.id: probe for probe in read_evaluation(run.path).probes}
    probes = [
        probe
        for probe in asked_probes(run)
        if probe.scope == "topic" and probe.kind == "open" and probe.leak and probe.id in known
    ]
    if not probes:
        return None
    results = score_probes(
        model, probes, run.settings.samples, run.settings.seed, lambda *_: None, lambda: False
    )

    def rate(leaks: list[bool]) -> float:
        return sum(leaks) / len(leaks)

    back = [p.question for p in probes if results[p.id]["leaked"] and not known[p.id].adapter.leaked]
    return Leak(
        rate([bool(known[p.id].base.leaked) for p in probes]),
        rate([bool(known[p.id].adapter.leaked) for p in probes]),
        rate([results[p.id]["leaked"] for p in probes]),
        len(probes),
        tuple(back),
    )
