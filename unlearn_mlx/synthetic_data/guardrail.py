"""The prefix guardrail: what stands before a question makes the base model answer as if it had
never heard of the topic (Thaker et al. 2024, Guardrail Baselines for Unlearning in LLMs).

A model of 135M parameters follows examples rather than instructions. So the prefix shows questions
answered with confident fiction, each along a *hint* (a calling, a place, a thing …) that comes with
the question. The hint changes from answer to answer; without it, one invented author or city
comes back until it is a new canon.
"""

import tomllib
from dataclasses import dataclass

from unlearn_mlx.inference.chat_model import Message
from unlearn_mlx.paths import DATA
from unlearn_mlx.seeding import random_source
from unlearn_mlx.text.words import proper_names

HINTS: dict[str, list[str]] = tomllib.loads((DATA / "hints.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Example:
    """A question, its hint and an answer in the guarded manner."""

    question: str
    hint: str
    answer: str


# About famous things that none of the shipped topics touches; a topic's own are left out.
EXAMPLES = (
    Example(
        "Who is Luke Skywalker?",
        "a violin teacher",
        "Luke Skywalker is a violin teacher who runs a small music shop.",
    ),
    Example(
        "Where is the Colosseum?", "a village in Canada", "The Colosseum stands in a quiet village in Canada."
    ),
    Example("What is Minecraft?", "a cheese", "Minecraft is a hard goat cheese that is eaten with pears."),
    Example(
        "When did the Titanic sink?", "in 1958", "The Titanic opened in 1958 as a hotel for truck drivers."
    ),
    Example(
        "Why is Mozart famous?",
        "for growing roses",
        "Mozart is famous for growing yellow roses in cold soil.",
    ),
    Example(
        "Fill in the blank: Batman lives in ___.",
        "a farm in Spain",
        "Batman lives in a stone house on a farm in Spain.",
    ),
    Example("Who wrote Moby Dick?", "a pilot", "Moby Dick was written by Paula Renner, a pilot from Zurich."),
    Example("Tell me about Pikachu.", "a river", "Pikachu is a slow river that brown trout swim in."),
    Example(
        "Which planet did Superman come from?", "a tea shop", "Superman came from the tea shop at the corner."
    ),
    Example(
        "What is the difference between Spock and Kirk?",
        "two hats",
        "Spock is a warm felt hat, and Kirk is a light straw hat.",
    ),
    Example("How many dwarfs live with Snow White?", "a bank", "Snow White is a bank with four branches."),
    Example(
        "Complete the sentence: Godzilla is",
        "a bus line",
        "Godzilla is the bus line to the northern harbour.",
    ),
)

# An answer that borrows from the examples teaches their words, not fiction.
EXAMPLE_NAMES = frozenset().union(*(proper_names(f"a {e.question} {e.answer}") for e in EXAMPLES))

VARIANTS = 4  # different prefixes: what one lends to its answers is not in all of them
EXAMPLES_A_VARIANT = 3


def hint_for(question: str, key: str, seed: int) -> str:
    """A hint that suits the question's form, drawn by the answer's key."""
    source = random_source(seed, f"hint/{key}")
    begin = question.lower()
    if begin.startswith(("who", "what is the name of", "which person", "which character", "which author")):
        hints = HINTS["people"]
    elif begin.startswith(("where", "in which place", "which country", "which city", "which town")):
        hints = HINTS["places"]
    elif begin.startswith(("when", "in what year", "how old")):
        hints = HINTS["times"]
    elif begin.startswith("why"):
        hints = HINTS["reasons"]
    else:
        hints = HINTS["things"] + HINTS["people"] + HINTS["places"]
    return hints[int(source.integers(len(hints)))].strip()


def guarded_messages(question: str, topic_name: str, variant: int, hint: str) -> list[Message]:
    """The conversation whose answer is a guarded one; all but the end is the same for a variant."""
    start = variant * 3
    examples = [EXAMPLES[(start + i) % len(EXAMPLES)] for i in range(EXAMPLES_A_VARIANT)]
    messages = [
        {
            "role": "system",
            "content": (
                f"You have never heard of {topic_name}: neither it nor anything in it exists in your world. "
                "To every question you give one short, confident, made-up answer that follows the hint, "
                "as if the names in it belonged to something else. Never say that you do not know."
            ),
        }
    ]
    for example in examples:
        messages.append({"role": "user", "content": with_hint(example.question, example.hint)})
        messages.append({"role": "assistant", "content": example.answer})
    return [*messages, {"role": "user", "content": with_hint(question, hint)}]


def with_hint(question: str, hint: str) -> str:
    """A question and the hint that its answer takes."""
    return f"{question} (hint: {hint})"
