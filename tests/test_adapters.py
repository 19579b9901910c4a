import json

import mlx.core as mx
import pytest
from safetensors import safe_open

from tests.helpers import QUESTIONS, chat_prompt, strong_adapter
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.inference.row_adapters import BASE, RowAdapters
from unlearn_mlx.models.registry import resolve_model


def logits_of(model, rows=1):
    return model.model(mx.array([chat_prompt(model, QUESTIONS[0])] * rows))


def test_a_fresh_adapter_changes_nothing(tiny_model):
    before = logits_of(tiny_model)
    Adapter(tiny_model.model, LoraShape(8, 4.0, 1000))
    assert mx.array_equal(logits_of(tiny_model), before)


def test_switched_off_it_is_the_base_to_the_bit(tiny_model):
    before = logits_of(tiny_model)
    adapter = strong_adapter(tiny_model)
    changed = logits_of(tiny_model)
    assert not mx.allclose(changed, before)
    adapter.switch(False)
    assert mx.array_equal(logits_of(tiny_model), before)
    adapter.switch(True)
    assert mx.array_equal(logits_of(tiny_model), changed)


def test_every_linear_layer_gets_one(tiny_model):
    names = {name.rsplit(".", 2)[1] for name in strong_adapter(tiny_model).weights()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_rows_of_one_batch_have_adapters_and_strengths_of_their_own(tiny_model, tmp_path):
    alone = {"base": logits_of(tiny_model, rows=4)}
    for seed in (1, 2):
        adapter = strong_adapter(tiny_model, seed)
        adapter.save(tmp_path / str(seed))
        adapter.detach()
        adapter = load_adapter(tiny_model.model, tmp_path / str(seed))
        alone[seed] = logits_of(tiny_model, rows=4)
        adapter.set_strength(0.5)
        alone[seed, "half"] = logits_of(tiny_model, rows=4)
        adapter.detach()
    adapters = RowAdapters(tiny_model.model)
    first, second = (adapters.weights(tmp_path / str(seed)) for seed in (1, 2))
    adapters.use([BASE, first, second, adapters.weights(tmp_path / "1", 0.5)])
    mixed = logits_of(tiny_model, rows=4)
    assert mx.array_equal(mixed[0], alone["base"][0])
    for place, name in enumerate([1, 2, (1, "half")], 1):
        assert mx.allclose(mixed[place], alone[name][place], atol=1e-4)
    adapters.use([second] * 4)
    assert mx.array_equal(logits_of(tiny_model, rows=4), alone[2])
    adapters.use([BASE])
    assert mx.array_equal(logits_of(tiny_model, rows=4), alone["base"])


def test_a_saved_adapter_comes_back(tiny_model, tiny_folder, tmp_path):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    changed = logits_of(tiny_model)
    other = load_model(resolve_model(str(tiny_folder)))
    load_adapter(other.model, tmp_path / "adapter")
    # It is saved in float16.
    assert mx.abs(logits_of(other) - changed).mean().item() < 0.02
    with safe_open(str(tmp_path / "adapter" / "adapters.safetensors"), "numpy") as file:
        assert len(list(file.keys())) == 2 * 7 * 2
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]


def test_mlx_lm_itself_reads_it(tiny_model, tiny_folder, tmp_path):
    from mlx_lm import load

    strong_adapter(tiny_model).save(tmp_path / "adapter")
    model = load(str(tiny_folder), adapter_path=str(tmp_path / "adapter"))[0]
    other = load_model(resolve_model(str(tiny_folder)))
    load_adapter(other.model, tmp_path / "adapter")
    tokens = mx.array([chat_prompt(tiny_model, QUESTIONS[0])])
    assert mx.allclose(model(tokens), logits_of(other), atol=1e-3)


def test_an_adapter_of_another_model_is_refused_and_leaves_the_model_alone(
    embedded_model, tiny_model, tmp_path
):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    before = logits_of(embedded_model)
    with pytest.raises(UserError, match="another model"):
        load_adapter(embedded_model.model, tmp_path / "adapter")
    assert mx.array_equal(logits_of(embedded_model), before)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("adapters.safetensors", b"damaged", 3),
        ("adapters.safetensors", None, 3),
        ("adapter_config.json", b"{", 2),
        ("adapter_config.json", b"{}", 2),
        ("adapter_config.json", b"[]", 2),
        ("adapter_config.json", None, 2),
    ],
)
def test_a_damaged_adapter_is_one_clear_line(tiny_model, tmp_path, name, content, code):
    folder = tmp_path / "adapter"
    strong_adapter(tiny_model).save(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_adapter(tiny_model.model, folder)
    assert caught.value.exit_code == code
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_lora_can_be_toggled(tiny_model, tmp_path):
    folder = tmp_path / "adapter"
    strong_adapter(tiny_model).save(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "fine_tune_type": "dora"}))
    with pytest.raises(UserError, match="dora"):
        load_adapter(tiny_model.model, folder)
