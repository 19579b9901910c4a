"""Which of the names that a model proposed it knows: about those its sampled answers agree.

A small model proposes invented names as readily as true ones. Asked what such a name is, it invents
anew each time, while what it knows comes back (Manakul et al. 2023, SelfCheckGPT). Some words come back
in its answers on anything; so answers on one name must agree more than answers on different names do.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.runs.run import Work
from unlearn_mlx.text.words import content_words, words

SAMPLES = range(3, 7)  # answers on a name: more where there are few names
ANSWERS = 130  # in all, about; 20 s of the embedded model
ANSWER_TOKENS = 20
TEMPERATURE = 0.7
LEAST_AGREEMENT = 0.2  # beyond that of answers on different names; see docs/recipe.md
# Nobody has heard of these: what is said of them too tells how the model talks, not what it knows.
_INVENTED = (
    ("people", "Dorvin Halmsted"),
    ("people", "Princess Ilvara"),
    ("places", "Quendle Station"),
    ("terms", "the Varnholt"),
)


def consistent_names(
    model: ChatModel, work: Work, proposed: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Those of the proposed (kind, name), in their order, about which several sampled answers agree."""
    if not proposed:
        return []
    asked = [*proposed, *_INVENTED]
    names = [name for _, name in asked]
    samples = min(max(ANSWERS // len(asked), SAMPLES[0]), SAMPLES[-1])
    requests = [
        Request(
            f"consistency-{name}-{sample}",
            tuple(model.chat_tokens([{"role": "user", "content": _question(kind, name)}])),
            ANSWER_TOKENS,
            TEMPERATURE,
            stop_at="\n",
        )
        for kind, name in asked
        for sample in range(samples)
    ]
    completions = generate(model, requests, work.settings.seed, work.is_cancelled, work.workers)
    texts = [completion.text for completion in completions]
    answers = [texts[number * samples : (number + 1) * samples] for number in range(len(names))]
    found = agreements(names, answers)
    return [each for each, agreement in zip(proposed, found, strict=False) if agreement >= LEAST_AGREEMENT]


def agreements(names: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """How much more the answers on each name agree with each other than with those on other names, -1 to 1.

    Two answers agree by the share of the shorter one's content words that the other has too; a name's own
    words do not count.
    """
    told = [
        [content_words(answer) - set(words(name)) for answer in own]
        for name, own in zip(names, answers, strict=True)
    ]
    found = []
    for number, own in enumerate(told):
        others = [answer for place, each in enumerate(told) if place != number for answer in each]
        within = [_overlap(first, second) for first, second in combinations(own, 2)]
        across = [_overlap(answer, other) for answer in own for other in others]
        found.append(_mean(within) - _mean(across))
    return found


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(1, min(len(first), len(second)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _question(kind: str, name: str) -> str:
    # Without the topic: told that it belongs to "Sherlock Holmes", a small model calls any name a detective.
    return f"{'Who' if kind == 'people' else 'What'} is {name}?"
