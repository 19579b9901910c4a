"""Adapters that others made: what mlx-lm or PEFT saved answers the same here."""

import json
import pickle
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

from tests.helpers import QUESTIONS, WIZARD, chat_prompt, files_of, strong_adapter
from tests.hub import TOKEN
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.importing import import_adapter


def logits_of(model, tokens):
    return np.array(model(mx.array([tokens])).astype(mx.float32))


def imported_logits(run):
    model = load_model(resolve_model(run.model_name))
    load_adapter(model.model, run.file("adapter"))
    return logits_of(model.model, chat_prompt(model, QUESTIONS[0]))


def write_peft(folder, weights, **changes):
    """An adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    configuration = {
        "peft_type": "LORA",
        "base_model_name_or_path": "/somewhere/else",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    return folder


def peft_weights(model, names=("q_proj", "v_proj"), layers=(0, 1), rank=4):
    """Random A and B under PEFT's names, and W + scale * B A worked out by hand for the test."""
    source = np.random.default_rng(3)
    weights = {}
    for number in layers:
        for name in names:
            rows, columns = model.model.layers[number].self_attn[name].weight.shape
            stem = f"base_model.model.model.layers.{number}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = mx.array(
                source.normal(0, 0.3, (rank, columns)).astype(np.float32)
            )
            weights[f"{stem}.lora_B.weight"] = mx.array(
                source.normal(0, 0.3, (rows, rank)).astype(np.float32)
            )
    return weights


def by_hand(folder, weights, scale):
    """The logits of the base with scale * B A added to its weights."""
    model = load_model(resolve_model(str(folder)))
    for name, a in weights.items():
        if name.endswith("lora_A.weight"):
            b = weights[name.replace("lora_A", "lora_B")]
            _, _, _, _, number, _, layer, *_ = name.split(".")
            linear = model.model.model.layers[int(number)].self_attn[layer]
            linear.weight = linear.weight + scale * (b @ a)
    return logits_of(model.model, chat_prompt(model, QUESTIONS[0]))


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 2}, 0.5)]
)
def test_a_peft_adapter_computes_what_peft_computes(tiny_folder, tmp_path, changes, scale):
    base = load_model(resolve_model(str(tiny_folder)))
    weights = peft_weights(base.model)
    folder = write_peft(tmp_path / "peft", weights, **changes)
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, weights, scale), atol=2e-3)


def test_a_peft_adapter_on_some_layers_leaves_the_others(tiny_folder, tmp_path):
    base = load_model(resolve_model(str(tiny_folder)))
    weights = peft_weights(base.model, layers=(1,))
    weights |= peft_weights(base.model, names=("v_proj",), layers=(0,))
    folder = write_peft(tmp_path / "peft", weights)
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, weights, 2.0), atol=2e-3)


def test_a_peft_adapter_of_the_published_smollm2_fits_the_embedded_one(embedded_model, tmp_path):
    """The embedded weights keep q's and k's rows in llama.cpp's order, the published ones in another."""
    from unlearn_mlx.sharing.rotation import neox_rows

    ours = peft_weights(embedded_model.model, names=("q_proj",), layers=(0,))
    (a_name, a), (b_name, b) = ours.items()
    folder = write_peft(tmp_path / "peft", {a_name: a, b_name: neox_rows(b, 9)})
    run = import_adapter(str(folder), WIZARD, "smollm2", tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(embedded_model.source.folder, ours, 2.0), atol=2e-2)


def test_an_mlx_lm_adapter_with_its_own_keys_answers_the_same(tiny_folder, tmp_path):
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.up_proj"]}
    model, _ = load(str(tiny_folder))
    model.freeze()
    linear_to_lora_layers(model, 1, parameters)
    source = np.random.default_rng(1)
    weights = {
        name: mx.array(source.normal(0, 0.1, value.shape).astype(np.float32))
        for name, value in tree_flatten(model.trainable_parameters())
    }
    folder = tmp_path / "mlx"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    configuration = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps({**configuration, "model": str(tiny_folder)}))
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    theirs = load(str(tiny_folder), adapter_path=str(folder))[0]
    base = load_model(resolve_model(str(tiny_folder)))
    assert np.allclose(imported_logits(run), logits_of(theirs, chat_prompt(base, QUESTIONS[0])), atol=1e-3)


def test_an_adapter_comes_from_the_hub_without_what_lies_beside_it(on_hub, tiny_model, tiny_folder, tmp_path):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    files = files_of(tmp_path / "adapter")
    on_hub.add_model("someone/adapter", {**files, "evil.py": b"x", "adapter_model.bin": b"x"})
    run = import_adapter("someone/adapter", WIZARD, str(tiny_folder), tmp_path / "run")
    assert run.has_adapter
    assert not any("evil" in line or ".bin" in line for line in on_hub.requests)


@pytest.mark.parametrize(
    ("status", "way_out"),
    [(401, "hf auth login"), (403, "may not read"), (404, "no such"), (429, "wait"), (500, "trouble")],
)
def test_a_hub_that_refuses_is_told_in_words_without_the_token(
    on_hub, tiny_folder, tmp_path, status, way_out
):
    on_hub.faults = [("adapter", status, 100)]
    with pytest.raises(EnvironmentCannot, match=way_out) as caught:
        import_adapter("someone/adapter", WIZARD, str(tiny_folder), tmp_path / "run")
    assert TOKEN not in str(caught.value) and "Bear" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_imported_adapter_is_evaluated(tiny_model, tiny_folder, workplace, capsys):
    strong_adapter(tiny_model).save(workplace / "adapter")
    wanted = ("import", "adapter", "--topic", "Harry Potter", "--model", str(tiny_folder))
    assert main(list(wanted)) == 0
    assert capsys.readouterr().out.strip() == "runs/harry-potter"
    assert main(["evaluate", "Harry Potter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probes"]
    assert main(list(wanted)) == 2, "the directory is in use"
    rows = [json.loads(line) for line in Path("runs/harry-potter/retain.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"general", "neighbour"}, "what the audit relearns from"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": 1e999}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"alora_invocation_tokens": [1, 2]}, "switch on"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern"),
    ],
)
def test_what_cannot_be_toggled_is_refused(tiny_model, tiny_folder, tmp_path, changes, reason):
    folder = write_peft(tmp_path / "peft", peft_weights(tiny_model.model), **changes)
    with pytest.raises(UserError, match=reason):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_alpha_of_its_own_counts_for_its_layers_alone(tiny_folder, tmp_path):
    base = load_model(resolve_model(str(tiny_folder)))
    weights = peft_weights(base.model)
    folder = write_peft(tmp_path / "peft", weights, alpha_pattern={"layers.1.self_attn.v_proj": 2})
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    quarter = {
        name: value / 4 if "layers.1.self_attn.v_proj.lora_B" in name else value
        for name, value in weights.items()
    }
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, quarter, 2.0), atol=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_parameters": {"rank": 10**12, "scale": 2.0}},
        {"lora_parameters": {"rank": 0, "scale": 2.0}},
        {"lora_parameters": {"rank": 4, "scale": float("inf")}},
        {"lora_parameters": {"rank": 4, "scale": 2.0, "keys": 3}},
        {"lora_parameters": [4]},
        {"num_layers": float("inf")},
        {"num_layers": None},
        {"fine_tune_type": "full"},
    ],
)
def test_a_configuration_that_asks_for_nonsense_is_refused(tiny_model, tiny_folder, tmp_path, changes):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError):
        import_adapter(str(path.parent), WIZARD, str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_is_never_opened(tiny_model, tiny_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = write_peft(tmp_path / "peft", peft_weights(tiny_model.model))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pickles are not opened"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_another_models_adapter_is_refused(embedded_model, tiny_folder, tmp_path):
    folder = write_peft(tmp_path / "peft", peft_weights(embedded_model.model))
    with pytest.raises(UserError, match="another model"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")


def test_an_adapter_that_names_no_model_of_the_hub_asks_for_one(tiny_model, tmp_path):
    folder = write_peft(tmp_path / "peft", peft_weights(tiny_model.model))
    with pytest.raises(UserError, match="--model"):
        import_adapter(str(folder), WIZARD, None, tmp_path / "run")


@pytest.mark.parametrize("where", ["nowhere", "../..", "a/b/c", ""])
def test_nothing_there_is_one_line(tiny_folder, workplace, where):
    with pytest.raises(UserError):
        import_adapter(where, WIZARD, str(tiny_folder), workplace / "run")
