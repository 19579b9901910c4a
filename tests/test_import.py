"""Adapters that others made: what mlx-lm or PEFT saved answers the same here."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

from tests.helpers import QUESTIONS, WIZARD, chat_prompt, files_of, strong_adapter
from tests.hub import TOKEN
from tests.peft_files import by_hand, imported_logits, logits_of, peft_weights, write_peft
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.importing import import_adapter


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


def old_configuration(version, **changes):
    """What mlx-lm wrote beside an adapter: at first with an alpha that counts."""
    parameters = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "scale": 10.0}
    first = {"lora_layers": -1, "lora_parameters": parameters, "model": "somewhere", "batch_size": 4}
    return {
        "0.12": first,
        "0.16": {**first, "use_dora": False},
        "0.21": {"num_layers": -1, "fine_tune_type": "lora", "lora_parameters": parameters},
    }[version] | changes


@pytest.mark.parametrize(
    ("configuration", "layers", "scale"),
    [
        (old_configuration("0.12"), (0, 1), 20.0),
        (old_configuration("0.16"), (0, 1), 10.0),
        (old_configuration("0.21"), (0, 1), 10.0),
        (old_configuration("0.16", lora_layers=1), (1,), 10.0),
        (old_configuration("0.21", num_layers=16), (0, 1), 10.0),
    ],
)
def test_what_mlx_lm_saved_years_ago_answers_as_it_did_then(
    tiny_folder, tiny_model, tmp_path, configuration, layers, scale
):
    """Without keys it adapted queries and values alone."""
    theirs = {name: array / 10 for name, array in peft_weights(tiny_model.model, layers=layers).items()}
    parts = ("base_model.model.", ""), (".lora_A.weight", ".lora_a"), (".lora_B.weight", ".lora_b")
    weights = {}
    for name, array in theirs.items():
        for old, new in parts:
            name = name.replace(old, new)
        weights[name] = array.T
    folder = tmp_path / "old"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, theirs, scale), atol=2e-3)
    assert run.settings.layers >= len(layers)


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
        {"use_dora": True},
        {"lora_parameters": {"rank": 4, "scale": 2.0, "keys": ["mlp"]}},
    ],
)
def test_a_configuration_that_asks_for_nonsense_is_refused(tiny_model, tiny_folder, tmp_path, changes):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError):
        import_adapter(str(path.parent), WIZARD, str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_names_no_model_of_the_hub_asks_for_one(tiny_model, tmp_path):
    folder = write_peft(tmp_path / "peft", peft_weights(tiny_model.model))
    with pytest.raises(UserError, match="--model"):
        import_adapter(str(folder), WIZARD, None, tmp_path / "run")


@pytest.mark.parametrize("where", ["nowhere", "../..", "a/b/c", ""])
def test_nothing_there_is_one_line(tiny_folder, workplace, where):
    with pytest.raises(UserError):
        import_adapter(where, WIZARD, str(tiny_folder), workplace / "run")
