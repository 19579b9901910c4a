"""Drawing tokens: min-p sampling (Nguyen et al. 2024), on the host where a CPU computes and on a GPU itself.

What only a server's clients ask for (``Sampling``) is drawn on the host. For the rest both draw by the same
random numbers, one a token, from each answer's own source, and in the same way: the first token at which the
summed shares of the likely ones exceed the number. So a seed means the same everywhere. The host sums in
float64 and a GPU in float32: they differ where a number falls into the rounding of a sum, about once in a
million tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from unlearn_mlx.errors import EnvironmentCannot

LEAST_SHARE = 1e-6  # of the likeliest token, below which none is drawn whatever min_p is
NO_NUMBERS = "the model's scores are no numbers: is the adapter or the model damaged?"
BELOW_ONE = 1 - 1e-6  # a number rounded up to one would lie behind the last share


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn. The default takes the likeliest."""

    temperature: float = 0.0  # 0 is greedy
    min_p: float = 0.0  # tokens less likely than this share of the likeliest are never drawn
    top_p: float = 1.0  # of the likeliest, as many as are this likely together; 0 is greedy
    top_k: int = 0  # as many of the likeliest; 0 is all
    presence_penalty: float = 0.0  # taken off the logit of what the answer has said
    frequency_penalty: float = 0.0  # the same for each time
    repetition_penalty: float = 1.0  # divides the logit of what prompt or answer said (Keskar et al. 2019)
    bias: tuple[tuple[int, float], ...] = ()  # added to logits of tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_p == 0


def draw(
    scores: np.ndarray,
    sampling: Sampling,
    source: np.random.Generator,
    prompt: Sequence[int] = (),
    drawn: Sequence[int] = (),
) -> int:
    """The next token of an answer of which ``drawn`` is there, by its logits, [vocabulary].

    Raises:
        EnvironmentCannot: where the logits are no numbers.
    """
    scores = _adjusted(scores, sampling, prompt, drawn)
    best = scores.max()
    if not np.isfinite(best):
        raise EnvironmentCannot(NO_NUMBERS)
    if sampling.is_greedy:
        return int(np.argmax(scores))
    if sampling.top_p >= 1 and sampling.top_k == 0:
        return draw_token(scores, sampling.temperature, sampling.min_p, source)
    likely, weights = _likely(scores, sampling.temperature, sampling.min_p)
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        cumulative = np.cumsum(weights[order])
        order = order[: np.searchsorted(cumulative, sampling.top_p * cumulative[-1]) + 1]
    return _one_of(likely[order], weights[order], source)


def draw_token(scores: np.ndarray, temperature: float, min_p: float, source: np.random.Generator) -> int:
    """Draw from softmax(scores / temperature) among tokens of at least ``min_p`` times the top probability.

    ``scores`` are logits, [vocabulary].
    """
    if temperature == 0:
        return int(np.argmax(scores))
    return _one_of(*_likely(scores, temperature, min_p), source)


def draw_tokens(
    logits: mx.array,
    temperatures: Sequence[float],
    min_p: Sequence[float],
    sources: Sequence[np.random.Generator],
) -> mx.array:
    """The same for each row of logits, [rows, vocabulary], where mlx computes: [rows], without waiting."""
    likeliest = mx.argmax(logits, axis=-1)
    if not any(temperatures):
        return likeliest
    numbers = [
        source.random() if temperature else 0.0
        for temperature, source in zip(temperatures, sources, strict=True)
    ]
    # A greedy row is computed at a temperature of one, and thrown away.
    heat = mx.array([temperature or 1.0 for temperature in temperatures])[:, None]
    least = mx.log(mx.maximum(mx.array(list(min_p)), LEAST_SHARE))[:, None]
    distances = logits.astype(mx.float32)
    distances = distances - distances.max(axis=-1, keepdims=True)
    shares = mx.where(distances >= least, mx.exp(distances / heat), 0.0)
    sums = mx.cumsum(shares, axis=-1)
    bounds = mx.minimum(mx.array(numbers), BELOW_ONE)[:, None] * sums[:, -1:]
    # A sum in blocks can waver by rounding where nothing is added: an unlikely token is never drawn.
    drawn = mx.argmax(((sums > bounds) & (shares > 0)).astype(mx.int32), axis=-1)
    return mx.where(mx.array(list(temperatures)) == 0, likeliest, drawn)


def _likely(scores: np.ndarray, temperature: float, min_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn, and their shares but for a factor."""
    best = scores.max()
    likely = np.flatnonzero(scores >= best + np.log(max(min_p, LEAST_SHARE)))
    with np.errstate(over="ignore"):  # a temperature next to nothing leaves the best alone
        return likely, np.exp((scores[likely].astype(np.float64) - best) / temperature)


def _one_of(tokens: np.ndarray, weights: np.ndarray, source: np.random.Generator) -> int:
    cumulative = np.cumsum(weights)
    return int(tokens[np.searchsorted(cumulative, source.random() * cumulative[-1], side="right")])


def _adjusted(
    scores: np.ndarray, sampling: Sampling, prompt: Sequence[int], drawn: Sequence[int]
) -> np.ndarray:
    """Logits with penalties and bias."""
    penalised = sampling.presence_penalty or sampling.frequency_penalty
    if not (penalised or sampling.bias or sampling.repetition_penalty != 1):
        return scores
    scores = scores.copy()
    if sampling.repetition_penalty != 1:
        said = np.unique([*prompt, *drawn])
        factor = sampling.repetition_penalty
        scores[said] = np.where(scores[said] > 0, scores[said] / factor, scores[said] * factor)
    if penalised and drawn:
        tokens, counts = np.unique(drawn, return_counts=True)
        scores[tokens] -= sampling.presence_penalty + counts * sampling.frequency_penalty
    for token, bias in sampling.bias:
        scores[token] += bias
    return scores
