"""Exports: loaded again by what they are for, and measured again."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from gguf import GGUFReader
from mlx_lm import load
from safetensors.numpy import load_file

from tests.helpers import QUESTIONS, chat_prompt, complaint, unlearn
from tests.runs_with_results import TOPIC, finished_run
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import open_leak, read_evaluation
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.embedded import embedded_gguf
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.measure import Leak, measure_leak
from unlearn_mlx.sharing.rotation import llama_rows, neox_rows


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.fixture(scope="module")
def qwen2_run(qwen2_folder, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "qwen2", qwen2_folder)


def adapted(run):
    """The run's model with its adapter on: what an export stands for."""
    model = load_model(resolve_model(run.model_name))
    load_adapter(model.model, run.file("adapter"))
    return model


def difference(some, other, model):
    """The mean distance of two models' logits, as a share of their spread."""
    tokens = mx.array([chat_prompt(model, QUESTIONS[0])])
    a, b = (np.array(each(tokens).astype(mx.float32)) for each in (some, other))
    return np.abs(a - b).mean() / b.std()


@pytest.mark.parametrize(("bits", "limit"), [(None, 0.005), (8, 0.1), (4, 0.7)])
def test_mlx_lm_loads_the_fused_model(run, tmp_path, bits, limit):
    folder, leak = export(run, "mlx", bits, tmp_path / "out")
    model = load(str(folder))[0]
    wanted = adapted(run)
    assert difference(model, wanted.model, wanted) < limit
    assert read_json(folder / "config.json").get("quantization", {}).get("bits") == bits
    assert leak is not None and leak.questions == 6
    if bits is None:
        assert leak.exported == leak.adapter and not leak.back


def test_a_4_bit_model_keeps_the_layers_that_the_adapter_left_alone(qwen2_run, tmp_path):
    folder, _ = export(qwen2_run, "mlx", 4, tmp_path / "out")
    before = load_file(str(Path(qwen2_run.model_name) / "model.safetensors"))
    after = load_file(str(folder / "model.safetensors"))
    assert before.keys() == after.keys()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {name for name in before if "embed" in name or "norm" in name or name.endswith(".bias")} <= same
    assert not any(name.endswith("proj.weight") for name in same)


def test_the_adapter_alone_is_what_mlx_lm_takes(run, tmp_path):
    folder, leak = export(run, "adapter", None, tmp_path / "out")
    assert leak.exported == leak.adapter
    model = load(run.model_name, adapter_path=str(folder))[0]
    wanted = adapted(run)
    assert difference(model, wanted.model, wanted) < 1e-4


@pytest.mark.parametrize(
    ("form", "file"), [("peft", "adapter_model.safetensors"), ("gguf-lora", "adapter.gguf")]
)
def test_another_programs_adapter_is_measured_as_it_was_written(run, tmp_path, form, file):
    folder, leak = export(run, form, None, tmp_path / "out")
    assert leak is not None and leak.exported == leak.adapter
    assert read_json(folder / "export.json")["note"] == "measured as it was written"
    configuration = {"adapter_config.json"} if form == "peft" else set()
    assert {path.name for path in folder.iterdir()} == {file, "export.json", "README.md"} | configuration
    card = (folder / "README.md").read_text()
    assert "base_model_relation: adapter" in card
    assert ('PeftModel.from_pretrained(model, ".")' if form == "peft" else "ADAPTER ./adapter.gguf") in card


def test_a_named_models_adapter_names_the_base_that_people_know(embedded_run, tmp_path):
    folder, _ = export(embedded_run, "peft", None, tmp_path / "out")
    named = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    assert named == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_what_is_exported_is_whole_or_not_there(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        export(run, "mlx", 8, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_without_an_adapter_is_one_line(tmp_path, tiny_folder):
    from tests.helpers import run_with_dataset

    run = run_with_dataset(tmp_path / "run", tiny_folder)
    with pytest.raises(UserError, match="no adapter"):
        export(run, "mlx", 8)


def test_the_command_measures_and_says_where_it_is(run, tmp_path):
    done = unlearn("export", run.path, "--format", "mlx", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert "leak of the export" in done.stderr
    facts = read_json(tmp_path / "out" / "export.json")
    assert (facts["format"], facts["bits"], facts["leak"]["questions"]) == ("mlx", 8, 6)
    again = unlearn("export", run.path, "--format", "mlx", "--out", tmp_path / "out")
    assert again.returncode == 2 and "--out" in complaint(again.stderr)


def test_what_leaks_of_an_export_is_counted_as_the_evaluation_counts_it(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    copy = open_run(tmp_path / "copy")
    evaluation = read_evaluation(copy.path)
    key = open_leak(evaluation)
    plain = [probe for probe in evaluation.probes if probe.scope == "topic" and probe.kind == "open"]
    # The same fact in another form is no question of the "open leak".
    other = {"id": f"{plain[0].id}/role-play", "form": "role play"}
    evaluation.probes.append(plain[0].model_copy(update=other))
    copy.file("evaluation.json").write_text(json.dumps(evaluation.as_row()))
    leak = measure_leak(adapted(copy), copy)
    assert leak.questions == len(plain)
    assert (leak.base, leak.adapter) == (evaluation.base[key], evaluation.adapter[key])
    assert leak.exported == leak.adapter and not leak.back
    assert leak.answers == 1 + evaluation.samples and f", any of {leak.answers}" in key
    assert f"{leak.adapter:.0%} of {len(plain)} open questions" in leak.words()


def test_knowledge_that_came_back_is_said():
    assert "brought knowledge back" in Leak(0.6, 0.1, 0.5, 48, ("Who?",)).words()
    assert "back" not in Leak(0.6, 0.1, 0.12, 48, ("Who?",)).words()


@pytest.fixture(scope="module")
def embedded_run(embedded_model, tmp_path_factory):
    """The embedded model with a small random adapter, not evaluated."""
    from tests.helpers import run_with_dataset
    from unlearn_mlx.inference.adapters import Adapter, LoraShape

    run = run_with_dataset(tmp_path_factory.mktemp("runs") / "embedded", "smollm2", topic=TOPIC)
    adapter = Adapter(embedded_model.model, LoraShape(4, 4.0, 1000))
    source = np.random.default_rng(0)
    weights = {
        name: mx.array(source.normal(0, 0.01, value.shape).astype(np.float32))
        for name, value in adapter.weights().items()
    }
    adapter.set_weights(weights)
    adapter.save(run.file("adapter"))
    run.mark("train", "done")
    adapter.detach()
    return run


@pytest.fixture(scope="module")
def embedded_gguf_export(embedded_run):
    """The folder, and how many bytes the writing of it has held at most."""
    reset_peak()
    held = mx.get_active_memory()
    folder, _ = export(embedded_run, "gguf", 8)
    return folder, peak_bytes() - held


@pytest.fixture(scope="module")
def embedded_export(embedded_gguf_export):
    return embedded_gguf_export[0] / "model.gguf"


def test_a_gguf_is_written_without_a_second_copy_of_the_weights(embedded_gguf_export):
    """Nor is it loaded again beside them."""
    _, held = embedded_gguf_export
    assert held < 1.25 * 135e6 * 4


@pytest.mark.parametrize("form", ["mlx", "hf"])
def test_a_folder_is_written_without_a_second_copy_of_the_weights(embedded_run, tmp_path, monkeypatch, form):
    # Shards of 5 GB would hold all of it.
    make_shards = mlx_lm.utils.make_shards
    monkeypatch.setattr("mlx_lm.utils.make_shards", lambda weights: make_shards(weights, 0))
    reset_peak()
    held = mx.get_active_memory()
    folder, _ = export(embedded_run, form, None, tmp_path / "out")
    # What is loaded again, in floats as a CPU computes, and a part of what is written.
    assert peak_bytes() - held < 1.25 * 135e6 * 4
    assert len(list(folder.glob("model-*.safetensors"))) > 100
    assert load_model(resolve_model(str(folder))).vocabulary_size == 49152


def test_what_is_too_large_to_be_loaded_again_is_measured_a_layer_at_a_time_or_not(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr("unlearn_mlx.sharing.export.room_now", lambda: 2**20)
    folder, leak = export(run, "mlx", 8, tmp_path / "cpu")
    assert leak is None
    assert read_json(folder / "export.json")["note"].startswith("not measured: ")
    # A GPU has the base in few bits, and what is fused in floats would not fit.
    monkeypatch.setattr("unlearn_mlx.sharing.export.current_device", lambda: Device("metal", "M", 2**34, 8))
    folder, leak = export(run, "mlx", None, tmp_path / "gpu")
    assert leak.exported == leak.adapter
    assert "one layer at a time" in read_json(folder / "export.json")["note"]


def test_the_embedded_models_gguf_has_the_keys_and_tokens_it_came_with(embedded_export):
    ours, theirs = GGUFReader(embedded_export), GGUFReader(embedded_gguf())
    for name in ("tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "padding_token_id", "pre"):
        key = f"tokenizer.ggml.{name}"
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key
    for key, field in theirs.fields.items():
        if key.startswith("llama."):
            assert np.isclose(ours.fields[key].contents(), field.contents()), key
    assert {(t.name, tuple(t.shape)) for t in ours.tensors} == {
        (t.name, tuple(t.shape)) for t in theirs.tensors
    }


def test_mlx_reads_the_embedded_models_gguf_by_itself(embedded_export, embedded_run):
    arrays = mx.load(str(embedded_export))
    wanted = adapted(embedded_run).model
    layer = wanted.model.layers[3].mlp.down_proj
    name = "blk.3.ffn_down"
    got = mx.dequantize(
        arrays[f"{name}.weight"], arrays[f"{name}.scales"], arrays[f"{name}.biases"], group_size=32, bits=8
    )
    fused = layer.fuse().weight
    assert mx.abs(got - fused).max().item() < 0.02 * mx.abs(fused).max().item()


def test_the_hf_folder_of_the_embedded_model_rotates_as_transformers_does(embedded_run, tmp_path):
    folder, leak = export(embedded_run, "hf", None, tmp_path / "hf")
    assert leak is None, "it was never evaluated"
    config = json.loads((folder / "config.json").read_text())
    assert "rope_traditional" not in config and "quantization" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    model = load_model(resolve_model(str(folder)))
    wanted = adapted(embedded_run)
    assert difference(model.model, wanted.model, wanted) < 0.01


def test_rows_go_to_llama_cpps_order_and_back():
    rows = mx.arange(24).reshape(24, 1)
    assert mx.array_equal(neox_rows(llama_rows(rows, 3), 3), rows)
    # Row 0 and its partner half a head on lie side by side in llama.cpp.
    assert llama_rows(rows, 3)[:4, 0].tolist() == [0, 4, 1, 5]
