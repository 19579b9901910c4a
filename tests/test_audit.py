import json

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm import convert

from tests.helpers import run_with_dataset, strong_adapter, write_tiny_model
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.audit import audit, relearn, verdict
from unlearn_mlx.evaluation.records import AuditRow
from unlearn_mlx.inference import loading
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.fusing import fused
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import read_rows, write_rows
from unlearn_mlx.runs.run import Work

TOKENS = mx.array([[3, 5, 8, 13, 21, 34]])


def run_with_adapter(path, model_folder):
    run = run_with_dataset(path, model_folder, samples=1, probes=40)
    model = load_model(resolve_model(str(model_folder)))
    strong_adapter(model).save(run.file("adapter"))
    run.mark("train", "done")
    retain = [
        {
            "id": f"r-{number}",
            "question": f"What is number {number}?",
            "answer": f"It is the number {number}.",
            "part": part,
            "complete": True,
        }
        for part in ("general", "neighbour")
        for number in range(10)
    ]
    write_rows(run.file("retain.jsonl"), retain)
    return run


def plain_model(model_folder):
    return load_model(resolve_model(str(model_folder)))


def saved_adapter(model, folder):
    """An adapter's folder, and what the model says with it."""
    adapter = strong_adapter(model)
    adapter.save(folder)
    adapter.detach()
    adapter = load_adapter(model.model, folder)
    said = model.model(TOKENS)
    adapter.detach()
    return folder, said


def test_a_fused_adapter_says_what_the_attached_one_says_and_few_bits_change_it(tiny_folder, tmp_path):
    model = plain_model(tiny_folder)
    base = model.model(TOKENS)
    folder, attached = saved_adapter(model, tmp_path)
    distances = {}
    for bits in (None, 8, 2):
        with fused(model, folder, bits, 32):
            distances[bits] = mx.abs(model.model(TOKENS) - attached).max().item()
        assert mx.array_equal(model.model(TOKENS), base)
    assert distances[None] < 1e-3 < distances[8] < distances[2]


def test_rounding_a_float_model_gives_the_numbers_of_a_quantized_one(tiny_folder, tmp_path):
    model = plain_model(tiny_folder)
    folder, _ = saved_adapter(model, tmp_path)
    with fused(model, folder, 4, 32):
        rounded = model.model(TOKENS)
    for name, layer in load_adapter(model.model, folder).layers():
        quantized = nn.QuantizedLinear.from_linear(layer.fuse(), 32, 4)
        model.model.update_modules(tree_unflatten([(name, quantized)]))
    assert mx.allclose(model.model(TOKENS), rounded, atol=1e-3)


@pytest.mark.parametrize("bits", [4, 8, None])
def test_fusing_takes_no_more_memory_than_the_model_does(tmp_path, bits, monkeypatch):
    """Of a model in 4 bits, as a GPU holds it: nothing is kept twice, and larger layers not at all."""
    folder = write_tiny_model(tmp_path / "model", tied=False, hidden_size=512, layers=16)
    quantized = tmp_path / "quantized"
    convert(str(folder), str(quantized), quantize=True, q_bits=4, q_group_size=64)
    monkeypatch.setattr(loading, "current_device", lambda: Device("metal", "Apple M9", 2**34, 8))
    model = plain_model(quantized)
    base = model.model(TOKENS)
    adapter_folder, attached = saved_adapter(model, tmp_path / "adapter")
    held, largest = mx.get_active_memory(), 512 * 2048 * 4
    reset_peak()
    with fused(model, adapter_folder, bits, 64):
        told = model.model(TOKENS)
        mx.eval(told)
    spread = base.std().item()
    if bits != 4:  # sixteen random layers make much of a rounding
        assert mx.abs(told - attached).mean().item() < 0.15 * spread
    assert peak_bytes() - held < 8 * largest
    assert mx.array_equal(model.model(TOKENS), base)


def test_relearning_changes_the_attached_adapter_and_not_the_files(tmp_path, tiny_folder):
    run = run_with_adapter(tmp_path / "run", tiny_folder)
    model = plain_model(tiny_folder)
    adapter = load_adapter(model.model, run.file("adapter"))
    before = run.file("adapter", "adapters.safetensors").read_bytes()
    weights = {name: mx.array(value) for name, value in adapter.weights().items()}
    relearn(model, adapter, Work(run, run.settings), "general")
    assert any(not mx.array_equal(value, weights[name]) for name, value in adapter.weights().items())
    assert run.file("adapter", "adapters.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="no rows of part"):
        relearn(model, adapter, Work(run, run.settings), "elsewhere")


def test_the_audit_tries_everything_and_keeps_what_it_has(tmp_path, tiny_folder):
    run = run_with_adapter(tmp_path / "run", tiny_folder)
    model = plain_model(tiny_folder)
    before = model.model(TOKENS)
    audit(model, Work(run, run.settings))
    assert mx.array_equal(model.model(TOKENS), before)
    written = json.loads(run.file("audit.json").read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert {"base", "adapter", "fused, 4 bits", "relearned on general text", "strength 0.5"} <= rows.keys()
    assert "1 sampled answer" in rows and "32 sampled answers" in rows
    for row in rows.values():
        assert 0 <= row["leak"] <= 1
        # An invented topic is asked the same, openly too.
        assert row["group"] == "samples" or 0 <= row["control_leak"] <= 1
    # A row that is there is not measured again, and a lost one is.
    kept = [row for row in written["rows"] if row["name"] != "fused, 4 bits"]
    kept[0]["leak"] = 0.123
    run.file("audit.json").write_text(json.dumps({**written, "rows": kept}))
    audit(model, Work(run, run.settings))
    measured = json.loads(run.file("audit.json").read_text())["rows"]
    again = {row["name"]: row for row in measured}
    assert len(measured) == len(again) == len(rows)
    assert again["base"]["leak"] == 0.123
    assert again["fused, 4 bits"] == rows["fused, 4 bits"]


def test_a_run_without_neighbours_is_audited_without_relearning_on_them(tmp_path, tiny_folder):
    run = run_with_adapter(tmp_path / "run", tiny_folder)
    rows = [row for row in read_rows(run.file("retain.jsonl")) if row["part"] != "neighbour"]
    write_rows(run.file("retain.jsonl"), rows)
    audit(plain_model(tiny_folder), Work(run, run.settings))
    names = {row["name"] for row in json.loads(run.file("audit.json").read_text())["rows"]}
    assert "relearned on general text" in names
    assert "relearned on neighbours" not in names


def rows_with(**leaks):
    return [
        AuditRow(name="base", group="plain", leak=0.8),
        AuditRow(name="adapter", group="plain", leak=0.1),
        *(AuditRow(name=name, group="export", leak=leak) for name, leak in leaks.items()),
    ]


def test_the_verdict_names_what_brought_most_back():
    assert "came back: four" in verdict(rows_with(eight=0.1, four=0.45))
    assert verdict(rows_with(eight=0.1, four=0.45)).startswith("50%")
    assert "No export" in verdict(rows_with(eight=0.1, four=0.12))


@pytest.mark.parametrize(
    ("base", "adapter", "questions"),
    [
        (0.8, 0.8, 48),
        (0.8, 0.9, 48),
        (0.8, 0.75, 48),  # less than a tenth of what the base leaks
        (0.0, 0.0, None),
        (1 / 48, 0.0, 48),  # one question
        (0.5, 0.49, None),
    ],
)
def test_where_nothing_was_forgotten_nothing_can_come_back(base, adapter, questions):
    rows = rows_with(four=0.9)
    rows[0].leak, rows[0].questions = base, questions
    rows[1].leak = adapter
    text = verdict(rows)
    assert text.startswith("Nothing was forgotten that could come back")
    assert f"{base:.0%}" in text and "came back" not in text


@pytest.mark.parametrize(("base", "questions"), [(2 / 48, 48), (0.1, None), (0.8, 48)])
def test_what_little_was_forgotten_can_come_back_whole(base, questions):
    rows = rows_with(four=0.9)
    rows[0].leak, rows[0].questions = base, questions
    rows[1].leak = 0.0
    assert verdict(rows).startswith("100% of the forgotten knowledge came back")


def test_what_an_invented_topic_gained_too_is_not_taken_for_remembering():
    rows = rows_with(four=0.45)
    for row, control in zip(rows, (0.0, 0.0, 0.3), strict=True):
        row.control_leak = control
    assert "No export" in verdict(rows)
