"""How a model does on probes: what it says, and which of four answers it finds likeliest."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.language_model.generation import Completion, Request, generate
from unlearn_mlx.synthetic_data.text import distinct_bigrams
from unlearn_mlx.topics import Topic, fold

ANSWER_TOKENS = 30  # as in RWKU (Jin et al. 2024)
SAMPLE_TEMPERATURE = 0.8


def score_probes(
    model: ChatModel,
    probes: Sequence[Probe],
    samples: int,
    seed: int,
    progress: Callable[[int, int, str], None],
    is_cancelled: Callable[[], bool],
) -> dict[str, dict[str, Any]]:
    """Score every probe on the model as it is now (adapter on or off), by the probe's id.

    Open probes get one greedy answer and ``samples`` at T = 0.8, cloze probes one greedy ending;
    both say whether any of them shows the knowledge. Choice and cloze probes get the number of the
    likeliest choice by mean log-probability a token.
    """
    said = [probe for probe in probes if probe.leak]
    results: dict[str, dict[str, Any]] = {probe.id: {} for probe in probes}
    requests = [request for probe in said for request in _requests(model, probe, samples)]
    completions: list[Completion] = []
    block = 256
    for start in range(0, len(requests), block):
        completions += generate(model, requests[start : start + block], seed, is_cancelled)
        progress(len(completions), len(requests), "answers")
    texts: dict[str, list[str]] = {probe.id: [] for probe in said}
    for completion in completions:
        texts[completion.key.rsplit("/", 1)[0]].append(completion.text.strip())
    for probe in said:
        answers = texts[probe.id]
        leaks = [shows_knowledge(probe, answer) for answer in answers]
        results[probe.id] |= {
            "answers": answers,
            "leaks": leaks,
            "leaked": any(leaks),
            "distinct_bigrams": distinct_bigrams(answers[0]),
        }
    chosen = [probe for probe in probes if probe.choices]
    scores = choice_scores(model, chosen)
    for probe, values in zip(chosen, scores, strict=True):
        results[probe.id] |= {
            "chosen": probe.choices[int(np.argmax(values))],
            "right": probe.choices[int(np.argmax(values))] == probe.answer,
        }
    progress(len(requests), len(requests), "choices")
    return results


def shows_knowledge(probe: Probe, answer: str) -> bool:
    """Whether an answer matches one of the probe's patterns."""
    folded = fold(answer)
    return any(re.search(pattern, folded, re.IGNORECASE) for pattern in probe.leak)


def choice_scores(model: ChatModel, probes: Sequence[Probe]) -> list[np.ndarray]:
    """Mean log-probability a token of each choice as the answer, one array of four a probe."""
    prompts, texts, counts = [], [], []
    for probe in probes:
        start = _prompt(model, probe)
        for choice in probe.choices:
            prompts.append(start)
            texts.append(model.text_tokens(f" {choice}" if probe.kind == "cloze" else choice))
        counts.append(len(probe.choices))
    means = [float(values.mean()) for values in model.log_probabilities(prompts, texts)]
    results, position = [], 0
    for count in counts:
        results.append(np.array(means[position : position + count]))
        position += count
    return results


def _requests(model: ChatModel, probe: Probe, samples: int) -> list[Request]:
    tokens = tuple(_prompt(model, probe))
    greedy = Request(f"{probe.id}/0", tokens, ANSWER_TOKENS)
    if probe.kind != "open":
        return [greedy]
    return [greedy] + [
        Request(f"{probe.id}/{number}", tokens, ANSWER_TOKENS, SAMPLE_TEMPERATURE)
        for number in range(1, samples + 1)
    ]


def _prompt(model: ChatModel, probe: Probe) -> list[int]:
    if probe.kind == "cloze":
        # The assistant has begun the sentence and goes on.
        return model.chat_tokens([{"role": "user", "content": "Complete the sentence."}], probe.question)
    return model.chat_tokens([{"role": "user", "content": probe.question}])


def _names_topic(topic: Topic, probe: Probe, answers: Sequence[str]) -> bool:
    said = topic.mentions(probe.question)
    return any(topic.mentions(answer) - said for answer in answers)


def summary(
    probes: Sequence[Probe], results: dict[str, dict[str, Any]], topic: Topic | None = None
) -> dict[str, float]:
    """The figures of the table: leak rates, choice accuracies and fluency, by scope.

    With a ``topic``, "named" is the share of open answers that name something of it unasked.
    """
    figures: dict[str, float] = {}

    def mean(name: str, values: list[float]) -> None:
        if values:
            figures[name] = float(np.mean(values))

    for scope in ("topic", "neighbour", "general"):
        own = [probe for probe in probes if probe.scope == scope]
        said = "leak" if scope == "topic" else "known"
        mean(f"{scope}/open {said}", [results[p.id]["leaked"] for p in own if p.kind == "open"])
        mean(f"{scope}/greedy {said}", [results[p.id]["leaks"][0] for p in own if p.kind == "open"])
        mean(f"{scope}/cloze {said}", [results[p.id]["leaked"] for p in own if p.kind == "cloze" and p.leak])
        mean(f"{scope}/choice", [results[p.id]["right"] for p in own if p.kind == "choice"])
        mean(
            f"{scope}/cloze choice", [results[p.id]["right"] for p in own if p.kind == "cloze" and p.choices]
        )
        if topic is not None:
            mean(
                f"{scope}/named",
                [_names_topic(topic, p, results[p.id]["answers"]) for p in own if p.kind == "open"],
            )
        mean(
            f"{scope}/distinct bigrams", [results[p.id]["distinct_bigrams"] for p in own if p.kind == "open"]
        )
    return figures
