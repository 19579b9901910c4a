"""Membership inference: does the model still find texts on the topic familiar?

Texts on the topic are held against texts on its neighbours. An attack scores each text, higher for
one it takes for trained on; its AUC is the chance that a topic text scores higher than a neighbour
text. 0.5 says that the two cannot be told apart.
"""

import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.cpu_math import exponential, log_sum_exp
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.inference.adapters import LoraLayers, lora_layers, with_lora_layers
from unlearn_mlx.inference.chat_model import ChatModel, in_chunks
from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.bounded_text import Text
from unlearn_mlx.runs.records import Record, read_records
from unlearn_mlx.topics import Topic

ATTACKS = ("loss", "zlib", "min-k", "min-k++")
LEAST_SHARE = 0.2  # K of Min-K %: the least likely fifth of the tokens
ROWS_AT_ONCE = 4


class Passage(Record):
    """A short text. ``scope`` is "topic" or "neighbour"."""

    id: str
    scope: str
    text: Text


@dataclass(frozen=True)
class TokenScores:
    """A text's tokens but the first, which is the beginning's mark where there is one: [tokens] each.

    ``log_probabilities`` are the tokens' own; ``means`` and ``deviations`` those of the
    log-probability under the model's own next-token distribution.
    """

    log_probabilities: np.ndarray
    means: np.ndarray
    deviations: np.ndarray


def read_passages(topic: Topic) -> list[Passage]:
    """The hand-written passages for a topic; none where nobody wrote any."""
    path = passages_file(topic)
    if not path.exists():
        return []
    return read_records(path, Passage)


def passages_file(topic: Topic) -> Path:
    """Where a topic's passages lie."""
    return DATA / "passages" / f"{topic.slug}.jsonl"


def token_scores(
    model: ChatModel,
    texts: Sequence[str],
    workers: WorkerPool | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[TokenScores]:
    """How likely a model finds each text as it stands, without a chat around it.

    Raises:
        Cancelled: between two batches, once ``is_cancelled`` returns True.
    """
    workers = workers or ALONE
    tokens = [model.document_tokens(text) for text in texts]
    batches = [tokens[start : start + ROWS_AT_ONCE] for start in range(0, len(tokens), ROWS_AT_ONCE)]
    layers = lora_layers(model.model) if workers.count else {}
    found = workers.map(_token_scores, model, batches, (layers,), is_cancelled)
    return [scores for of_batch in found for scores in of_batch]


def _token_scores(
    model: ChatModel, batches: Sequence[Sequence[list[int]]], layers: LoraLayers
) -> Generator[list[TokenScores], None, None]:
    with with_lora_layers(model.model, layers):
        for rows in batches:
            yield _scored(model, rows)


def _scored(model: ChatModel, rows: Sequence[list[int]]) -> list[TokenScores]:
    longest = max(map(len, rows))
    batch = mx.array([row + [0] * (longest - len(row)) for row in rows])
    row_index = mx.array([r for r, row in enumerate(rows) for _ in row[1:]])
    columns = mx.array([k for row in rows for k in range(len(row) - 1)])
    targets = mx.array([token for row in rows for token in row[1:]])

    def scores_of(states: mx.array, own: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        logits = model.head(states).astype(mx.float32)
        scores = logits - log_sum_exp(logits)[..., None]
        shares = exponential(scores)
        means = mx.sum(shares * scores, axis=-1)
        deviations = mx.sqrt(mx.maximum(mx.sum(shares * scores**2, axis=-1) - means**2, 1e-12))
        return mx.take_along_axis(scores, own[:, None], axis=-1)[:, 0], means, deviations

    found = in_chunks(scores_of, model.states_at(batch, row_index, columns), targets)
    ends = np.cumsum([len(row) - 1 for row in rows])[:-1]
    parts = [np.split(part, ends) for part in found]
    return [TokenScores(*of_row) for of_row in zip(*parts, strict=True)]


def attack_scores(text: str, scores: TokenScores) -> dict[str, float]:
    """Each attack's score of one text.

    loss: mean log-probability (Yeom et al. 2018). zlib: log-probability a compressed byte (Carlini
    et al. 2021). min-k: mean of the least likely fifth (Shi et al. 2024). min-k++: the same of
    (log p - mean) / deviation over the vocabulary (Zhang et al. 2024).
    """
    own = scores.log_probabilities
    standard = (own - scores.means) / scores.deviations
    return {
        "loss": float(own.mean()),
        "zlib": float(own.sum()) / len(zlib.compress(text.encode())),
        "min-k": lowest_mean(own),
        "min-k++": lowest_mean(standard),
    }


def lowest_mean(values: np.ndarray, share: float = LEAST_SHARE) -> float:
    """Mean of the lowest ``share`` of the values, at least one."""
    count = max(1, int(len(values) * share))
    return float(np.sort(values)[:count].mean())


def area_under_curve(members: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a member scores higher than another, ties counted half (Mann-Whitney)."""
    difference = np.subtract.outer(np.asarray(members, float), np.asarray(others, float))
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def membership_metrics(passages: Sequence[Passage], rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The AUC of each attack, topic against neighbour."""

    def of(scope: str, attack: str) -> list[float]:
        return [row[attack] for row, passage in zip(rows, passages, strict=True) if passage.scope == scope]

    return {
        f"membership/{attack}": area_under_curve(of("topic", attack), of("neighbour", attack))
        for attack in ATTACKS
    }
