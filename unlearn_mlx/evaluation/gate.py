"""Gates: bounds on a run's metrics, for scripts that must know whether it is good enough."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.keys import OPEN_LEAK, WORST_CASE, answers_in, answers_in_words, key_of

if TYPE_CHECKING:
    from unlearn_mlx.evaluation.records import Evaluation

# What can be gated: name, metric of the adapter or scope of which to count what is kept, and meaning.
GATED = {
    "leak": (OPEN_LEAK, "share of the open questions on the topic that leak in any answer"),
    "worst": (WORST_CASE, "share of the topic's facts that leak in any form of the question and any answer"),
    "greedy": (
        "topic/greedy leak",
        "share of the open questions on the topic that leak in the greedy answer",
    ),
    "adversarial": ("topic/adversarial leak", "share of the adversarial questions on the topic that leak"),
    "named": ("topic/named", "share of the open questions on the topic with an answer that names it unasked"),
    "choice": ("topic/choice", "share of the topic's multiple choice questions that are right"),
    "cloze": ("topic/cloze leak", "share of the topic's sentences that are finished right"),
    "neighbours": ("neighbour", "what the adapter knows of neighbours, as a share of what the base knows"),
    "general": ("general", "what the adapter knows of everything else, as a share of what the base knows"),
    "fluency": ("topic/distinct bigrams", "share of different word pairs in answers on the topic"),
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_GATE = re.compile(r"\s*([a-z]+)\s*(<=|>=|<|>)\s*([0-9]*\.?[0-9]+)(%?)\s*")


@dataclass(frozen=True)
class Gate:
    """One bound, such as leak<=0.1."""

    name: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.bound:g}"

    def passes(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return COMPARISONS[self.comparison](value, self.bound)


def parse_gates(text: str) -> list[Gate]:
    """The gates in a text such as ``leak<=0.1,neighbours>=95%``.

    Raises:
        UserError: naming the part that is no gate, or what can be gated.
    """
    gates = []
    for part in text.split(","):
        match = _GATE.fullmatch(part)
        if not match:
            raise UserError(
                f"--gate: {part.strip()[:40]!r} is no bound: write bounds as in "
                "--gate 'leak<=0.1,neighbours>=0.95'"
            )
        name, comparison, number, percent = match.groups()
        if name not in GATED:
            raise UserError(f"--gate: {name[:40]!r} is not measured: use {', '.join(GATED)}")
        gates.append(Gate(name, comparison, float(number) / (100 if percent else 1)))
    return gates


def gate_value(evaluation: "Evaluation", name: str) -> float:
    """The value that a gate is held against.

    Raises:
        UserError: where the evaluation does not have it.
    """
    value = _value(evaluation, name)
    if value is None:
        have = [other for other in GATED if _value(evaluation, other) is not None]
        raise UserError(f"--gate: this evaluation has no metric for '{name}': it has {', '.join(have)}")
    return value


def gate_answers(evaluation: "Evaluation", name: str) -> str:
    """How many answers a gate's value counts, in words; empty where it is not about any of several."""
    answers = answers_in(key_of(evaluation.adapter, GATED[name][0]) or "")
    return answers_in_words(answers) if answers else ""


def _value(evaluation: "Evaluation", name: str) -> float | None:
    # The command reads what can be gated for its help, which is not to wait for the evaluation's types.
    from unlearn_mlx.evaluation.schema import kept

    where = GATED[name][0]
    if "/" not in where:
        return kept(evaluation, where)
    key = key_of(evaluation.adapter, where)
    return None if key is None else evaluation.adapter[key]
