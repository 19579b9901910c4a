"""The control of an evaluation: a random adapter of the trained one's size, on a share of the probes."""

import mlx.core as mx
import numpy as np
import pytest

from tests.helpers import WIZARD, run_with_dataset, strong_adapter
from unlearn_mlx.evaluation.control import control, controlled_probes, product_norm, random_weights
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.evaluation.stage import every_probe


def product(layer):
    return np.array(layer.lora_a, np.float64) @ np.array(layer.lora_b, np.float64)


def test_a_random_adapter_has_the_norm_of_the_trained_one_in_every_layer(tiny_model):
    adapter = strong_adapter(tiny_model)
    trained = {name: product(layer) for name, layer in adapter.layers()}
    weights = random_weights(adapter, 7)
    adapter.set_weights(weights)
    for name, layer in adapter.layers():
        wanted, found = trained[name], product(layer)
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(wanted), rel=1e-4), name
        assert product_norm(np.array(layer.lora_a), np.array(layer.lora_b)) == pytest.approx(
            np.linalg.norm(found), rel=1e-4
        )
        # Another direction: two random ones are nearly at right angles.
        assert abs((wanted * found).sum()) < 0.3 * np.linalg.norm(wanted) ** 2, name
    adapter.detach()


def test_the_same_seed_gives_the_same_control(tiny_model):
    adapter = strong_adapter(tiny_model)
    first, again, other = (random_weights(adapter, seed) for seed in (1, 1, 2))
    assert all(mx.array_equal(first[name], again[name]) for name in first)
    assert not any(mx.array_equal(first[name], other[name]) for name in first)
    adapter.detach()


def test_an_adapter_that_does_nothing_has_a_control_that_does_nothing(tiny_model):
    from unlearn_mlx.inference.adapters import Adapter, LoraShape

    adapter = Adapter(tiny_model.model, LoraShape(4, 4.0, 1000))
    weights = random_weights(adapter, 0)
    assert all(not np.array(value).any() for value in weights.values())
    adapter.detach()


@pytest.mark.parametrize(("probes", "samples"), [(1000, 4), (260, 4), (80, 0)])
def test_the_control_costs_an_eighth_of_what_the_adapter_is_asked(tmp_path, tiny_folder, probes, samples):
    from unlearn_mlx.evaluation.stage import asked_probes

    run = run_with_dataset(tmp_path / "run", tiny_folder, topic=WIZARD, probes=probes)
    asked = asked_probes(run)
    few = controlled_probes(asked, samples)

    def answers(some):
        return sum((1 + samples * (probe.form == QUESTION_ANSWER)) * bool(probe.leak) for probe in some)

    assert 0.04 < answers(few) / answers(asked) <= 0.15
    assert len([probe for probe in few if probe.choices]) <= 0.35 * len([p for p in asked if p.choices])
    assert {(probe.scope, probe.kind) for probe in few} == {
        *(("topic", "open"), ("topic", "choice"), ("neighbour", "open")),
        *(("neighbour", "choice"), ("general", "choice")),
    }
    assert few == [probe for probe in every_probe(run) if probe in few]


def test_the_three_are_counted_on_the_same_probes():
    choices = ("a", "b", "c", "d")
    probes = [
        *(Probe(f"o{n}", "topic", "open", "", "Who?", "x", ("x",)) for n in range(4)),
        *(Probe(f"c{n}", "topic", "choice", "", "Who?", "a", (), choices) for n in range(4)),
    ]

    def results(leaking, right):
        found = {}
        for n in range(4):
            found[f"o{n}"] = {"answers": ["", ""], "leaks": [False, n < leaking], "leaked": n < leaking}
            found[f"c{n}"] = {"chosen": "a", "right": n < right}
        return found

    found = control(probes, results(4, 4), results(0, 1), results(3, 4), 0)
    key = "topic/open leak, any of 2"
    assert [found[who][key] for who in ("base", "adapter", "random")] == [1.0, 0.0, 0.75]
    assert [found[who]["topic/choice"] for who in ("base", "adapter", "random")] == [1.0, 0.25, 1.0]
    assert found["probes"] == 8 and found["intervals"][key].keys() == {"base", "adapter", "random"}
    low, high = found["intervals"][key]["random"]
    assert low <= 0.75 <= high
