"""How a model does on probes: what it says, and which of four answers it finds likeliest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.evaluation.metrics import summary
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.evaluation.records import Outcome
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.leakage.names import says_pattern
from unlearn_mlx.runs.files import append_checked
from unlearn_mlx.runs.records import Record, read_known
from unlearn_mlx.runs.run import now_and_then
from unlearn_mlx.text.overlap import ngram_entropy, rouge_l_recall
from unlearn_mlx.text.words import distinct_bigrams

__all__ = ["choice_scores", "score_probes", "summary"]

ANSWER_TOKENS = 30  # as in RWKU (Jin et al. 2024)
SAMPLE_TEMPERATURE = 0.8
SCORES = "2: choices in float32"  # changes with how a score is made: older ones are not taken from a cache
BLOCK = 96  # probes scored, and kept in the journal, at a time


class ScoreRow(Record):
    """A line of a score's journal."""

    id: str
    result: Outcome


def score_probes(
    model: ChatModel,
    probes: Sequence[Probe],
    samples: int,
    seed: int,
    progress: Callable[[int, int, str], None],
    is_cancelled: Callable[[], bool],
    journal: Path | None = None,
    workers: WorkerPool | None = None,
) -> dict[str, dict[str, Any]]:
    """Score every probe on the model as it is now (adapter on or off), by the probe's id.

    Open probes get one greedy answer and, as plain questions, ``samples`` at T = 0.8; cloze probes
    get one greedy ending. All say whether any answer shows the knowledge, and the greedy one's
    ROUGE-L recall. Choice and cloze probes get the likeliest choice by mean log-probability a token.

    Probes are scored in blocks of fixed membership. A block that ``journal`` holds whole is taken
    from it: the bytes are those of a score that was never cut off.

    Raises:
        Cancelled: once ``is_cancelled`` returns True; finished blocks are in the journal.
    """
    rows = read_known(journal, ScoreRow) if journal else []
    known = {row.id: row.result.as_row() for row in rows}
    results: dict[str, dict[str, Any]] = {}

    def tell(done: int) -> None:
        progress(len(results) + done, len(probes), "probes")

    tell(0)
    for start in range(0, len(probes), BLOCK):
        block = probes[start : start + BLOCK]
        if not all(probe.id in known for probe in block):
            scored = _score_block(model, block, samples, seed, is_cancelled, workers, now_and_then(tell))
            known |= scored
            if journal:
                journal.parent.mkdir(parents=True, exist_ok=True)
                append_checked(journal, [{"id": id, "result": result} for id, result in scored.items()])
        results |= {probe.id: known[probe.id] for probe in block}
        tell(0)
    return results


def _score_block(
    model: ChatModel,
    probes: Sequence[Probe],
    samples: int,
    seed: int,
    is_cancelled: Callable[[], bool],
    workers: WorkerPool | None,
    told: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    said = [probe for probe in probes if probe.leak]
    results: dict[str, dict[str, Any]] = {probe.id: {} for probe in probes}
    requests = [request for probe in said for request in _requests(model, probe, samples)]
    texts: dict[str, list[str]] = {probe.id: [] for probe in said}

    def told_of_probes(answered: int) -> None:
        told(answered * len(said) // len(requests))

    for completion in generate(model, requests, seed, is_cancelled, workers, told_of_probes):
        texts[completion.key.rsplit("/", 1)[0]].append(completion.text.strip())
    for probe in said:
        answers = texts[probe.id]
        leaks = [says_pattern(probe.leak, answer) for answer in answers]
        results[probe.id] |= {
            "answers": answers,
            "leaks": leaks,
            "leaked": any(leaks),
            "rouge": rouge_l_recall(answers[0], probe.answer),
            "entropy": ngram_entropy(answers[0]),
            "distinct_bigrams": distinct_bigrams(answers[0]),
        }
    chosen = [probe for probe in probes if probe.choices]
    scores = choice_scores(model, chosen, workers, is_cancelled)
    for probe, values in zip(chosen, scores, strict=True):
        results[probe.id] |= {
            "chosen": probe.choices[int(np.argmax(values))],
            "right": probe.choices[int(np.argmax(values))] == probe.answer,
        }
    return results


def choice_scores(
    model: ChatModel,
    probes: Sequence[Probe],
    workers: WorkerPool | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[np.ndarray]:
    """Mean log-probability a token of each choice as the answer, one array of four a probe.

    Raises:
        Cancelled: once ``is_cancelled`` returns True.
    """
    prompts = [_prompt(model, probe) for probe in probes]
    texts = [
        [model.text_tokens(f" {choice}" if probe.kind == "cloze" else choice) for choice in probe.choices]
        for probe in probes
    ]
    return [
        np.array([float(values.mean()) for values in of_choices])
        for of_choices in model.log_probabilities(prompts, texts, workers=workers, is_cancelled=is_cancelled)
    ]


def _requests(model: ChatModel, probe: Probe, samples: int) -> list[Request]:
    tokens = tuple(_prompt(model, probe))
    greedy = Request(f"{probe.id}/0", tokens, ANSWER_TOKENS)
    if probe.form != QUESTION_ANSWER:
        return [greedy]
    return [greedy] + [
        Request(f"{probe.id}/{number}", tokens, ANSWER_TOKENS, SAMPLE_TEMPERATURE)
        for number in range(1, samples + 1)
    ]


def _prompt(model: ChatModel, probe: Probe) -> list[int]:
    if probe.kind == "cloze":
        # The assistant has begun the sentence and goes on.
        return model.chat_tokens([{"role": "user", "content": "Complete the sentence."}], probe.question)
    return model.chat_tokens([{"role": "user", "content": probe.question}], probe.start)
