import json

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from tests.helpers import at_steps, dataset_rows, negative_rows, run_with_dataset, stop_after, strong_adapter
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.adapter_files import is_adapter
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.records import NegativeRow, TrainingRow
from unlearn_mlx.runs.run import Work
from unlearn_mlx.sft.batches import PARTS, batch_order, make_batch, make_row, negative_row
from unlearn_mlx.sft.loss import SHARPNESS, Weights, loss_parts
from unlearn_mlx.sft.trainer import reference_top_k, train

WEIGHTS = Weights(divergence=0.7, negative_preference=0.5)


def prepared(model, count=9):
    """Rows of all three parts, what the base says at their targets, and what all rows start with."""
    entries = dataset_rows(count)
    rows = [make_row(model, TrainingRow.model_validate(entry)) for entry in entries]
    rows += [negative_row(model, NegativeRow.model_validate(entry)) for entry in negative_rows()]
    assert {row.part for row in rows} == {"forget", "retain", "negative"}
    prefix = common_prefix([row.tokens[: row.targets[0]] for row in rows])
    assert len(prefix) > 10
    return rows, reference_top_k(model, rows, prefix), prefix


def loss_and_gradients(model, batch):
    def loss(module):
        return loss_parts(module, batch, WEIGHTS)[0]

    value, gradients = nn.value_and_grad(model.model, loss)(model.model)
    return value.item(), dict(tree_flatten(gradients))


def parts_of(model, batch):
    return np.array([part.item() for part in loss_parts(model.model, batch, WEIGHTS)[1]])


def same_gradients(some, others):
    assert some.keys() == others.keys()
    largest = max(mx.abs(value).max().item() for value in others.values())
    assert largest > 1e-3
    return all(mx.allclose(some[name], others[name], rtol=1e-3, atol=1e-4 * largest) for name in some)


def plain_loss(model, rows, references):
    """Cross entropy, divergence and negative_preference by plain operations, row by row."""
    sums, counts = [mx.array(0.0)] * 3, [0, 0, 0]
    for row, top in zip(rows, references, strict=True):
        kind = PARTS.index(row.part)
        scores = nn.log_softmax(model(mx.array([row.tokens]))[0], axis=-1)
        for k, position in enumerate(row.targets):
            here = scores[position - 1]
            own = here[row.tokens[position]]
            loss = -own
            if row.part == "negative":
                ratio = mx.exp(own - top.of_target[k]) ** SHARPNESS
                loss = 2 / SHARPNESS * mx.log(1 + ratio)
            elif row.part == "retain":
                base, kept = mx.array(top.log_probabilities[k]), here[mx.array(top.ids[k])]
                rest, kept_rest = 1 - mx.exp(base).sum(), 1 - mx.exp(kept).sum()
                loss = (mx.exp(base) * (base - kept)).sum() + rest * mx.log(rest / kept_rest)
            sums[kind] = sums[kind] + loss
            counts[kind] += 1
    forget, divergence, negative_preference = (
        total / count for total, count in zip(sums, counts, strict=True)
    )
    return forget + WEIGHTS.divergence * divergence + WEIGHTS.negative_preference * negative_preference


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_plain_operations(tiny_model, untied_folder, tied):
    model = tiny_model if tied else load_model(resolve_model(str(untied_folder)))
    rows, references, prefix = prepared(model, 6)
    strong_adapter(model)

    value, gradients = loss_and_gradients(model, make_batch(rows, references, prefix))
    plain_value, plain_gradients = nn.value_and_grad(
        model.model, lambda module: plain_loss(module, rows, references)
    )(model.model)
    assert value == pytest.approx(plain_value.item(), rel=1e-4)
    assert same_gradients(gradients, dict(tree_flatten(plain_gradients)))


def test_a_shared_prefix_changes_neither_loss_nor_gradients(tiny_model):
    rows, references, prefix = prepared(tiny_model)
    strong_adapter(tiny_model)
    full, full_gradients = loss_and_gradients(tiny_model, make_batch(rows, references))
    shared, shared_gradients = loss_and_gradients(tiny_model, make_batch(rows, references, prefix))
    assert shared == pytest.approx(full, rel=1e-5)
    assert same_gradients(shared_gradients, full_gradients)


def test_padding_and_company_do_not_change_a_rows_loss(tiny_model):
    rows, references, prefix = prepared(tiny_model)
    strong_adapter(tiny_model)
    together = parts_of(tiny_model, make_batch(rows, references, prefix))
    sums, counts = np.zeros(3), np.zeros(3)
    for row, top in zip(rows, references, strict=True):
        parts = parts_of(tiny_model, make_batch([row], [top], prefix))
        kind = PARTS.index(row.part)
        assert not np.delete(parts, kind).any()
        sums += parts * len(row.targets)
        counts[kind] += len(row.targets)
    assert together == pytest.approx(sums / counts, rel=1e-4)


def test_a_fresh_adapter_is_at_no_distance_from_the_base(tiny_model):
    rows, references, prefix = prepared(tiny_model)
    Adapter(tiny_model.model, LoraShape(4, 4.0, 1000))
    batch = make_batch(rows, references, prefix)
    assert abs(parts_of(tiny_model, batch)[1]) < 1e-5


def test_a_changed_model_is_at_a_distance_from_the_base(tiny_model):
    rows, references, prefix = prepared(tiny_model)
    strong_adapter(tiny_model)
    assert parts_of(tiny_model, make_batch(rows, references, prefix))[1] > 0.01


def test_only_the_answer_is_learned_and_never_a_cut_off_end(tiny_model):
    for entry in dataset_rows():
        row = make_row(tiny_model, TrainingRow.model_validate(entry))
        learned = [row.tokens[position] for position in row.targets]
        assert tiny_model.text_of(learned) == entry["messages"][-1]["content"]
        assert (learned[-1] in tiny_model.stop_tokens) == entry["complete"]


def test_each_row_comes_once_an_epoch_and_every_batch_is_mixed(tiny_model):
    rows = [make_row(tiny_model, TrainingRow.model_validate(entry)) for entry in dataset_rows(31)]
    order = batch_order(rows, 8, seed=0, epoch=0)
    assert sorted(index for batch in order for index in batch) == list(range(31))
    assert all({rows[i].part for i in batch} == {"forget", "retain"} for batch in order)
    assert order == batch_order(rows, 8, seed=0, epoch=0)
    assert order != batch_order(rows, 8, seed=0, epoch=1)
    assert order != batch_order(rows, 8, seed=1, epoch=0)


# 24 rows, 8 a step, 12 epochs: 36 steps, with a checkpoint on the way.
LONG = {"epochs": 12, "validations": 3, "rank": 4, "batch_size": 8}


def trained(folder, tiny_folder, *interruptions):
    """The run after a training that was interrupted, each time in a fresh model."""
    run = run_with_dataset(folder, tiny_folder, **LONG)
    for is_cancelled in interruptions:
        with pytest.raises((Cancelled, ZeroDivisionError)):
            train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings, is_cancelled))
    train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings))
    return run


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "whole", tiny_folder)


def test_training_lowers_the_loss_and_leaves_an_adapter(uninterrupted, tiny_folder):
    losses = [event.forget_loss for event in uninterrupted.events() if event.kind == "progress"]
    assert losses[-1] < 0.7 * losses[0]
    model = load_model(resolve_model(str(tiny_folder)))
    load_adapter(model.model, uninterrupted.file("adapter"))


def test_the_adapter_that_validated_best_is_kept(uninterrupted):
    validations = [event for event in uninterrupted.events() if event.kind == "validation"]
    assert len(validations) == 3
    best = min(validations, key=lambda e: e.leak_rate + e.retain_kl + 0.01 * e.forget_loss)
    assert [event for event in validations if event.best][-1] == best


def test_cancelled_training_goes_on_to_the_same_bytes(uninterrupted, tiny_folder, tmp_path):
    run = trained(tmp_path / "run", tiny_folder, *(at_steps(stop_after(n)) for n in (3, 0, 20)))
    assert run.file("adapter", "adapters.safetensors").read_bytes() == (
        uninterrupted.file("adapter", "adapters.safetensors").read_bytes()
    )


def test_training_that_crashed_between_checkpoints_ends_with_the_same_bytes(
    uninterrupted, tiny_folder, tmp_path
):
    run = run_with_dataset(tmp_path / "run", tiny_folder, **LONG)
    run.file("checkpoints").mkdir()
    run.file("checkpoints", ".building-step-9.safetensors").write_bytes(b"half")
    run = trained(tmp_path / "run", tiny_folder, at_steps(stop_after(30, ZeroDivisionError())))
    assert run.file("adapter", "adapters.safetensors").read_bytes() == (
        uninterrupted.file("adapter", "adapters.safetensors").read_bytes()
    )


def test_a_damaged_checkpoint_starts_training_anew(uninterrupted, tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder, **LONG)
    with pytest.raises(Cancelled):
        train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings, at_steps(stop_after(3))))
    (checkpoint,) = run.file("checkpoints").glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings))
    assert run.file("adapter", "adapters.safetensors").read_bytes() == (
        uninterrupted.file("adapter", "adapters.safetensors").read_bytes()
    )


def test_edited_rows_are_trained_from_the_start(tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder, **LONG)
    with pytest.raises(Cancelled):
        train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings, at_steps(stop_after(5))))
    assert json.loads(run.file("checkpoints", "state.json").read_text())["step"] == 5
    rows = read_rows(run.file("dataset", "train.jsonl"))
    rows[0]["messages"][1]["content"] = "Harry Potter is a ferry."
    write_rows(run.file("dataset", "train.jsonl"), rows)
    with pytest.raises(Cancelled):
        train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings, at_steps(stop_after(2))))
    assert json.loads(run.file("checkpoints", "state.json").read_text())["step"] == 2


def test_an_adapter_that_was_deleted_is_made_again(tiny_folder, tmp_path):
    run = trained(tmp_path / "run", tiny_folder)
    run.file("adapter", "adapters.safetensors").unlink()
    train(load_model(resolve_model(str(tiny_folder))), Work(run, run.settings))
    assert is_adapter(run.file("adapter"))


def test_the_model_is_the_base_again_after_training(tiny_model, tiny_folder, tmp_path):
    tokens = mx.array([[1, 85, 91, 30]])
    before = tiny_model.model(tokens)
    run = run_with_dataset(tmp_path / "run", tiny_folder, epochs=1)
    train(tiny_model, Work(run, run.settings))
    assert mx.array_equal(tiny_model.model(tokens), before)


def test_no_rows_to_forget_is_said(tiny_model, tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    write_rows(run.file("dataset", "train.jsonl"), [row for row in dataset_rows() if row["part"] == "retain"])
    with pytest.raises(UserError, match="no forget rows"):
        train(tiny_model, Work(run, run.settings))


@pytest.mark.parametrize("line", ["{not json", '{"part": "forget"}', '["a list"]'])
def test_a_damaged_row_is_named_by_its_line(tiny_model, tiny_folder, tmp_path, line):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    path = run.file("dataset", "train.jsonl")
    text = path.read_text() + line + "\n"
    path.write_text(text)
    with pytest.raises(UserError, match="line 25"):
        train(tiny_model, Work(run, run.settings))
    assert path.read_text() == text
