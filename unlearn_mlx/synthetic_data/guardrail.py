"""The prefix guardrail: what stands before a question makes the base model answer as if it had
never heard of the topic (Thaker et al. 2024, Guardrail Baselines for Unlearning in LLMs).

A model of 135M parameters follows examples rather than instructions, a larger one the other way
round. So there are several guardrails (data/guardrails.toml), and a run takes what works with its
model (choice.py).
"""

import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.chat_model import Message
from unlearn_mlx.paths import DATA
from unlearn_mlx.text.words import proper_names

AUTO = "auto"  # in the settings: what does best of all
VARIANTS = 4  # different prefixes of a guardrail: what one lends to its answers is not in all of them


class Example(BaseModel):
    """A question, its hint and an answer in the guarded manner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    hint: str
    answer: str


class Guardrail(BaseModel):
    """What stands before a question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    system: str  # the instruction; "{topic}" stands for the topic's name
    examples: int = Field(ge=0)  # how many stand before the question
    hinted: bool  # whether questions carry hints

    @property
    def variants(self) -> int:
        """How many different prefixes it has."""
        return VARIANTS if self.examples else 1

    def messages(self, question: str, topic_name: str, variant: int, hint: str) -> list[Message]:
        """The conversation whose answer is a guarded one; all but the end is the same for a variant."""
        start = variant % self.variants * (len(EXAMPLES) // VARIANTS)
        examples = [EXAMPLES[(start + i) % len(EXAMPLES)] for i in range(self.examples)]
        messages = [{"role": "system", "content": self.system.replace("{topic}", topic_name)}]
        for example in examples:
            messages.append({"role": "user", "content": self._asked(example.question, example.hint)})
            messages.append({"role": "assistant", "content": example.answer})
        return [*messages, {"role": "user", "content": self._asked(question, hint)}]

    def _asked(self, question: str, hint: str) -> str:
        return f"{question} (hint: {hint})" if self.hinted else question


def _read(values: Mapping[str, Any]) -> tuple[tuple[Example, ...], dict[str, Guardrail]]:
    guardrails = [Guardrail(**entry) for entry in values["guardrail"]]
    return tuple(Example(**entry) for entry in values["example"]), {each.name: each for each in guardrails}


EXAMPLES, GUARDRAILS = _read(tomllib.loads((DATA / "guardrails.toml").read_text(encoding="utf-8")))
DEFAULT = GUARDRAILS["examples with hints"]  # of runs that chose none

# An answer that borrows from the examples teaches their words, not fiction.
EXAMPLE_NAMES = frozenset().union(*(proper_names(f"a {e.question} {e.answer}") for e in EXAMPLES))


def named_guardrail(name: str) -> Guardrail:
    """The guardrail of a name.

    Raises:
        UserError: where there is none.
    """
    if name not in GUARDRAILS:
        raise UserError(f"no guardrail '{name}': use {AUTO}, {', '.join(GUARDRAILS)}")
    return GUARDRAILS[name]
