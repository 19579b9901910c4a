"""What noise does: a random adapter that is as large as the trained one, layer by layer.

Any change of the weights loses some of what a model knows. What the trained adapter forgets and the
random one does not was unlearned; what both lose was only shaken.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from unlearn_mlx.evaluation.intervals import clusters_of, share_interval
from unlearn_mlx.evaluation.keys import key_of
from unlearn_mlx.evaluation.metrics import Results, metric_rows
from unlearn_mlx.evaluation.probes import MULTIPLE_CHOICE, QUESTION_ANSWER, Probe, even_share
from unlearn_mlx.evaluation.schema import CONTROLLED
from unlearn_mlx.inference.adapters import Adapter

COST_SHARE = 0.12  # of what the trained adapter is asked
CHOICE_COST = 0.6  # of an answer: four short texts are read, none is written


def random_weights(adapter: Adapter, seed: int) -> dict[str, mx.array]:
    """Arrays of normal numbers by the names of an adapter's own.

    In each layer B A has the Frobenius norm of the adapter's own.
    """
    source = np.random.default_rng(seed)
    weights: dict[str, mx.array] = {}
    for name, layer in adapter.layers():
        wanted = product_norm(_numbers(layer.lora_a), _numbers(layer.lora_b))
        a, b = source.standard_normal(layer.lora_a.shape), source.standard_normal(layer.lora_b.shape)
        # Half of the factor each, so that neither leaves the range of half precision.
        factor = (wanted / product_norm(a, b)) ** 0.5
        weights[f"{name}.lora_a"] = mx.array((factor * a).astype(np.float32))
        weights[f"{name}.lora_b"] = mx.array((factor * b).astype(np.float32))
    return weights


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of a b, [inputs, rank] and [rank, outputs], which is not made for it."""
    return float(np.sqrt(max(0.0, float(((a.T @ a) * (b @ b.T)).sum()))))


def controlled_probes(probes: Sequence[Probe], samples: int) -> list[Probe]:
    """An even share of the probes behind the controlled metrics, for COST_SHARE of what all probes take."""
    scopes = {metric.partition("/")[0] for metric in CONTROLLED}
    asked = [
        probe
        for probe in probes
        if probe.scope in scopes
        and probe.form in (QUESTION_ANSWER, MULTIPLE_CHOICE)
        and (probe.scope != "general" or probe.kind == "choice")
    ]
    if not asked:
        return []
    cost, own = (sum(_cost(probe, samples) for probe in some) for some in (probes, asked))
    return even_share(asked, min(len(asked), int(len(asked) * COST_SHARE * cost / own)))


def control(
    probes: Sequence[Probe], base: Results, adapter: Results, random: Results, seed: int
) -> dict[str, Any]:
    """The controlled metrics of base, adapter and random adapter on the same few probes.

    {"probes": how many, "base" and "adapter" and "random": {metric: value},
    "intervals": {metric: {the three: [low, high]}}}.
    """
    found: dict[str, Any] = {"probes": len(probes), "intervals": {}}
    for name, results in (("base", base), ("adapter", adapter), ("random", random)):
        rows = metric_rows(probes, results)
        found[name] = {}
        for metric in CONTROLLED:
            if key := key_of(rows, metric):
                values = [value for _, value in rows[key]]
                clusters = clusters_of([(probe.id, probe.entity) for probe, _ in rows[key]])
                found[name][key] = float(np.mean(values))
                found["intervals"].setdefault(key, {})[name] = list(share_interval(values, seed, clusters))
    return found


def _cost(probe: Probe, samples: int) -> float:
    """About what a probe takes, in answers."""
    answers = bool(probe.leak) * (1 + samples * (probe.form == QUESTION_ANSWER))
    return answers + CHOICE_COST * bool(probe.choices)


def _numbers(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)
