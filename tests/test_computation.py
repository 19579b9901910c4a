"""How a step is computed changes its memory, never what it finds."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tests.helpers import QUESTIONS, run_with_dataset, strong_adapter
from tests.test_training import WEIGHTS, loss_and_gradients, prepared
from unlearn_mlx import pipeline
from unlearn_mlx.compute import planner
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.compute.workers import ALONE
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference import loading
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.runs.records import Computation
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.sft.batches import make_batch
from unlearn_mlx.sft.checkpointing import checkpointed
from unlearn_mlx.sft.parallel import Training, step_gradients


def alike(some, others):
    """Whether gradients are the same to a hundred-thousandth of the largest."""
    largest = max(mx.abs(value).max().item() for value in others.values())
    return some.keys() == others.keys() and all(
        mx.abs(some[name] - others[name]).max().item() <= 1e-5 * largest for name in some
    )


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("part_rows", [None, 5, 2])
@pytest.mark.parametrize("again", [False, True])
def test_parts_and_activations_computed_twice_give_the_same_loss_and_gradients(
    tiny_model, part_rows, again, shares
):
    rows, references, prefix = prepared(tiny_model)
    prefix = prefix if shares else []
    adapter = strong_adapter(tiny_model)
    tiny_model.model.train()
    loss, expected = loss_and_gradients(tiny_model, make_batch(rows, references, prefix))
    way = Computation(decode_batch=64, part_rows=part_rows, checkpointing=again)
    training = Training(tiny_model, adapter, rows, references, prefix, WEIGHTS, way)
    parts, gradients = step_gradients(training, list(range(len(rows))), ALONE)
    total = parts[0] + WEIGHTS.divergence * parts[1] + WEIGHTS.negative_preference * parts[2]
    assert total.item() == pytest.approx(loss, rel=1e-5)
    assert alike(dict(tree_flatten(gradients)), expected)


def test_only_the_layers_of_one_model_are_computed_twice_and_only_for_a_while(tiny_model, tiny_folder):
    with loading.load_by_name(str(tiny_folder)) as other, checkpointed(tiny_model.model):
        kinds = {type(layer) for layer in tiny_model.model.model.layers}
        assert kinds.isdisjoint(type(layer) for layer in other.model.model.layers)
        names = [name for name, _ in tree_flatten(tiny_model.model.parameters())]
        assert names == [name for name, _ in tree_flatten(other.model.parameters())]
        ask = [Request(QUESTIONS[0], tuple(tiny_model.text_tokens(QUESTIONS[0])), 8)]
        assert generate(tiny_model, ask, 0) == generate(other, ask, 0)
    kind = type(tiny_model.model.model.layers[0])
    assert kind not in kinds and kind.__name__ == "TransformerBlock"


def test_how_a_run_is_computed_is_kept_when_it_goes_on(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder)
    way = Computation(decode_batch=16, part_rows=3, checkpointing=True)
    run.manifest.computation = way
    run.save_manifest()
    seen = []
    monkeypatch.setattr(pipeline, "_work_off", lambda stage, model, work: seen.append((model, work)))
    pipeline.run_stages(run, ["train"])
    [(model, work)] = seen
    assert model.decode_batch_size == 16
    assert work.run.manifest.computation == way == open_run(run.path).manifest.computation


def test_a_new_run_is_computed_as_fits_and_says_so(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder)
    small = Device("cpu", "Toy", int(1.5 * 2**20), 2)
    monkeypatch.setattr("unlearn_mlx.compute.device.current_device", lambda: small)
    monkeypatch.setattr("unlearn_mlx.compute.planner.refuse", lambda *_: None)
    pipeline.run_stages(run, ["train"])
    assert run.stage_is_done("train")
    way = open_run(run.path).manifest.computation
    assert way.checkpointing and way.part_rows == 1
    assert any("smaller pieces" in getattr(event, "text", "") for event in run.events())


def test_a_run_that_goes_on_where_there_is_less_memory_is_computed_in_smaller_pieces(
    tiny_folder, workplace, monkeypatch
):
    run = run_with_dataset(workplace / "run", tiny_folder)
    run.manifest.computation = planner.usual_computation(current_device())
    run.save_manifest()
    small = Device("cpu", "Toy", int(1.5 * 2**20), 2)
    monkeypatch.setattr("unlearn_mlx.compute.device.current_device", lambda: small)
    monkeypatch.setattr("unlearn_mlx.compute.planner.refuse", lambda *_: None)
    pipeline.run_stages(run, ["train"])
    way = open_run(run.path).manifest.computation
    assert way.checkpointing and way.part_rows == 1
    assert any("less memory" in getattr(event, "text", "") for event in run.events())


def test_what_does_not_fit_is_refused_before_it_is_loaded(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder)
    monkeypatch.setattr("unlearn_mlx.compute.holders.free_bytes", lambda: GIGABYTE // 8)
    monkeypatch.setattr(loading, "load_model", lambda source: pytest.fail("loaded"))
    with pytest.raises(EnvironmentCannot, match="0.1 GB are free: close other programs"):
        pipeline.run_stages(run, ["train"])
    assert not run.stage_is_done("train")
