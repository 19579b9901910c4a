"""What an adapter does where nothing was to change: prompts on everyday things, and raw text."""

from collections.abc import Callable, Sequence

import numpy as np

from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.evaluation.divergence import divergence_from_base
from unlearn_mlx.evaluation.membership import (
    Passage,
    TokenScores,
    attack_scores,
    membership_metrics,
    read_passages,
    token_scores,
)
from unlearn_mlx.evaluation.metrics import Values
from unlearn_mlx.inference.adapters import Adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request, generate
from unlearn_mlx.paths import DATA
from unlearn_mlx.text.overlap import at_equal_length, ngram_entropy
from unlearn_mlx.topics import Topic

NEUTRAL_TOKENS = 64
ALL_TEXTS_FROM = 200  # probes; a run that asks fewer compares half of the texts


def neutral_prompts() -> list[str]:
    """Prompts that have nothing to do with any topic."""
    return (DATA / "neutral-prompts.txt").read_text(encoding="utf-8").splitlines()


def texts_for(topic: Topic, probes: int) -> tuple[list[str], list[Passage]]:
    """The everyday prompts and the passages that a run with so many probes is compared on."""
    prompts, passages = neutral_prompts(), read_passages(topic)
    if probes >= ALL_TEXTS_FROM:
        return prompts, passages
    scopes = dict.fromkeys(passage.scope for passage in passages)
    return prompts[::2], [p for scope in scopes for p in [q for q in passages if q.scope == scope][::2]]


def compare_neutral(
    model: ChatModel,
    adapter: Adapter,
    asked: Sequence[str],
    passages: Sequence[Passage],
    seed: int,
    progress: Callable[[int, int, str], None],
    is_cancelled: Callable[[], bool],
    workers: WorkerPool | None = None,
) -> tuple[Values, Values, dict[str, dict[str, float]]]:
    """Metrics of base and adapter, one value a text, and the membership metrics of both.

    "neutral/divergence" is the KL divergence from the base in nats a token on the base's own
    answers to ``asked``, "neutral/raw divergence" the mean difference of log-probabilities on texts without a
    chat around them: a changed prompt leaves it at 0, changed weights do not. "neutral/entropy" is
    RWKU's fluency of the answers, both cut to the shorter's length. The adapter is left on.
    """
    prompts = [tuple(model.chat_tokens([{"role": "user", "content": prompt}])) for prompt in asked]
    requests = [Request(f"neutral-{number}", tokens, NEUTRAL_TOKENS) for number, tokens in enumerate(prompts)]
    texts = [passage.text for passage in passages]
    progress(0, 4, "neutral texts")
    adapter.switch(False)
    base_answers = generate(model, requests, seed, is_cancelled, workers)
    progress(1, 4, "neutral texts")
    raw = texts or [answer.text for answer in base_answers]
    base_scores = token_scores(model, raw, workers, is_cancelled)
    adapter.switch(True)
    progress(2, 4, "neutral texts")
    answers = generate(model, requests, seed, is_cancelled, workers)
    scores = token_scores(model, raw, workers, is_cancelled)
    progress(3, 4, "neutral texts")
    kept = [number for number, answer in enumerate(base_answers) if answer.text.strip()]
    divergences = divergence_from_base(
        model,
        adapter,
        [prompts[number] for number in kept],
        [model.text_tokens(base_answers[number].text) for number in kept],
        workers,
        is_cancelled,
    )
    progress(4, 4, "neutral texts")
    base, changed = _values(base_answers, answers, base_scores, scores, divergences)
    membership = {"base": base_scores, "adapter": scores} if passages else {}
    return base, changed, {whose: _membership(passages, found) for whose, found in membership.items()}


def _entropies(
    base: Sequence[Completion], adapter: Sequence[Completion]
) -> tuple[list[float], list[float]] | None:
    """The entropies of both answers to each prompt at equal length; None where all are too short."""
    pairs = [
        pair for old, new in zip(base, adapter, strict=True) if (pair := at_equal_length(old.text, new.text))
    ]
    return (
        ([ngram_entropy(old) for old, _ in pairs], [ngram_entropy(new) for _, new in pairs])
        if pairs
        else None
    )


def _values(
    base_answers: Sequence[Completion],
    answers: Sequence[Completion],
    base_scores: Sequence[TokenScores],
    scores: Sequence[TokenScores],
    divergences: list[float],
) -> tuple[Values, Values]:
    """The metrics of base and adapter, by what each has answered and how it scores raw text."""
    differences = [
        float(np.abs(new.log_probabilities - old.log_probabilities).mean())
        for new, old in zip(scores, base_scores, strict=True)
        if old.log_probabilities.size
    ]
    base: Values = {
        "neutral/divergence": [0.0] * len(divergences),
        "neutral/raw divergence": [0.0] * len(differences),
    }
    changed: Values = {"neutral/divergence": divergences, "neutral/raw divergence": differences}
    if entropies := _entropies(base_answers, answers):
        base["neutral/entropy"], changed["neutral/entropy"] = entropies
    return base, changed


def _membership(passages: Sequence[Passage], scores: Sequence[TokenScores]) -> dict[str, float]:
    rows = [attack_scores(passage.text, score) for passage, score in zip(passages, scores, strict=True)]
    return membership_metrics(passages, rows)
