"""Adapters in PEFT's format: read as PEFT would use them, or refused with the reason; and written for it."""

import json
import pickle
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest

from tests.helpers import WIZARD
from tests.peft_files import by_hand, imported_logits, peft_weights, write_peft
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.importing import import_adapter


def renamed(pattern, new):
    return lambda name: re.sub(pattern, new, name)


@pytest.mark.parametrize(
    "rename",
    [
        renamed(r"\.weight$", ".default.weight"),
        renamed(r"\.weight$", ".my-adapter_1.weight"),
        renamed(r"^base_model\.model\.", ""),
        renamed(r"^base_model\.model\.(.*)\.weight$", r"\1.default.weight"),
    ],
)
def test_names_that_other_means_of_saving_write_are_known(tiny_folder, tiny_model, tmp_path, rename):
    weights = peft_weights(tiny_model.model)
    folder = write_peft(tmp_path / "peft", {rename(name): array for name, array in weights.items()})
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, weights, 2.0), atol=2e-3)


def test_two_adapters_in_one_file_are_refused(tiny_folder, tiny_model, tmp_path):
    weights = peft_weights(tiny_model.model)
    both = {name.replace(".weight", f".{of}.weight"): array for of in "ab" for name, array in weights.items()}
    folder = write_peft(tmp_path / "peft", both)
    with pytest.raises(UserError, match=r"several adapters \(a, b\)"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")


def test_arrays_that_were_saved_in_shards_are_said_to_be_empty(tiny_folder, tiny_model, tmp_path):
    weights = {name: array[:0] for name, array in peft_weights(tiny_model.model).items()}
    folder = write_peft(tmp_path / "peft", weights)
    with pytest.raises(UserError, match="has nothing in base_model.*: save it whole"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"target_modules": r".*self_attn\.(q|v)_proj"}, {}),
        ({"target_modules": UNSLOTH}, {}),
        ({"target_modules": "all-linear"}, {"names": ALL_LINEAR}),
        ({"target_modules": None}, {}),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, {"names": ("up_proj",), "layers": (1,)}),
        ({"layers_to_transform": [1]}, {"layers": (1,)}),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, {"layers": (1,)}),
        ({"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, {"layers": (1,)}),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*k_proj"}, {"names": ("q_proj",)}),
    ],
)
def test_the_layers_that_peft_adapts_are_adapted(tiny_folder, tiny_model, tmp_path, changes, chosen):
    weights = peft_weights(tiny_model.model, **chosen)
    folder = write_peft(tmp_path / "peft", weights, **changes)
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(tiny_folder, weights, 2.0), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "ranks", "scales"),
    [
        ({"rank_pattern": {"v_proj": 2}}, {"v_proj": 2}, {"v_proj": 4.0}),
        ({"rank_pattern": {"proj": 2}}, {}, {}),  # the end of a name begins behind a point
        ({"rank_pattern": {".*v_proj": 2, "v_proj": 3}}, {"v_proj": 2}, {"v_proj": 4.0}),  # the first one
        ({"alpha_pattern": {r"^model\.layers\.1\.self_attn\.(q|v)_proj": 2}}, {}, {"layers.1.": 0.5}),
        ({"alpha_pattern": {r"layers.0.self_attn.q_proj": 4}}, {}, {"layers.0.self_attn.q": 1.0}),
        (
            {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
            {"v_proj": 1},
            {"v_proj": 3.0, "q_proj": 4.0},
        ),
    ],
)
def test_ranks_and_alphas_of_their_own_count_by_pefts_rule(
    tiny_folder, tiny_model, tmp_path, changes, ranks, scales
):
    weights = {}
    for name in ("q_proj", "v_proj"):
        weights |= peft_weights(tiny_model.model, names=(name,), rank=ranks.get(name, 4))
    folder = write_peft(tmp_path / "peft", weights, **changes)
    run = import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    wanted = by_hand(
        tiny_folder,
        weights,
        lambda module: next((scale for part, scale in scales.items() if part in module), 2.0),
    )
    assert np.allclose(imported_logits(run), wanted, atol=5e-3)


def head_weights(model):
    rows, columns = model.model.embed_tokens.weight.shape
    source = np.random.default_rng(4)
    shapes = {"A": (4, columns), "B": (rows, 4)}
    return {
        f"base_model.model.lm_head.lora_{of}.weight": mx.array(
            source.normal(0, 0.3, shape).astype(np.float32)
        )
        for of, shape in shapes.items()
    }


def test_an_adapted_head_answers_as_pefts_does(untied_folder, tmp_path):
    """PEFT saves the base's own head beside it."""
    base = load_model(resolve_model(str(untied_folder))).model
    weights = {**peft_weights(base), **head_weights(base)}
    own = {"base_model.model.lm_head.base_layer.weight": base.lm_head.weight}
    folder = write_peft(tmp_path / "peft", weights | own, target_modules=["q_proj", "v_proj", "lm_head"])
    run = import_adapter(str(folder), WIZARD, str(untied_folder), tmp_path / "run")
    assert np.allclose(imported_logits(run), by_hand(untied_folder, weights, 2.0), atol=2e-2)


def test_an_adapted_head_is_refused_where_it_is_the_embedding(tiny_folder, tiny_model, tmp_path):
    weights = {**peft_weights(tiny_model.model), **head_weights(tiny_model.model)}
    folder = write_peft(tmp_path / "peft", weights, target_modules=["q_proj", "v_proj", "lm_head"])
    with pytest.raises(UserError, match="lm_head, which is one with the embedding") as caught:
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
    assert "another model" not in str(caught.value)


@pytest.mark.parametrize("more_rows", [0, 1])
def test_an_embedding_of_its_own_is_refused(tiny_folder, tiny_model, tmp_path, more_rows):
    """As PEFT saves it where tokens were added to the base."""
    own = tiny_model.model.model.embed_tokens.weight
    other = mx.concatenate([own, own[:more_rows]]) if more_rows else own[::-1]
    name = "base_model.model.model.embed_tokens.weight"
    folder = write_peft(tmp_path / "peft", {**peft_weights(tiny_model.model), name: other})
    with pytest.raises(UserError, match="another model.embed_tokens than .* where tokens were added"):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")


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


def test_an_adapter_of_other_shapes_is_one_line_also_where_rows_change_places(tiny_folder, tmp_path):
    """As they do for the embedded model, which has q's and k's rows in llama.cpp's order."""
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rope_traditional": True}))
    stem = "base_model.model.model.layers.0.self_attn.k_proj"
    weights = {f"{stem}.lora_A.weight": mx.ones((4, 48)), f"{stem}.lora_B.weight": mx.ones((15, 4))}
    folder = write_peft(tmp_path / "peft", weights, target_modules=["k_proj"])
    with pytest.raises(UserError, match=r"k_proj.lora_a is 48 x 4, and 64 x 4 here"):
        import_adapter(str(folder), WIZARD, str(base), tmp_path / "run")


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
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save: lm_head, embed_tokens"),
        ({"alpha_pattern": {r"((\w|.)+)+[!?]": 2}}, "alpha_pattern has a pattern that takes too long"),
        ({"target_modules": r"((\w|.)+)+[!?]"}, "target_modules has a pattern that takes too long"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern has a pattern that cannot be read"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is no table"),
        ({"rank_pattern": {"v_proj": 2}}, "v_proj is of rank 4, and its configuration says 2"),
        ({"r": 8}, "_proj is of rank 4, and its configuration says 8"),
        ({"target_modules": ["q_proj"]}, "v_proj, which its target_modules leave out"),
        ({"target_modules": r".*\.q_proj"}, "v_proj, which its target_modules leave out"),
        ({"exclude_modules": ["v_proj"]}, "v_proj, which its target_modules leave out"),
        ({"layers_to_transform": [1]}, r"layers.0.self_attn.[qv]_proj, which its target_modules leave out"),
        ({"layers_to_transform": 0, "layers_pattern": "blocks"}, "leave out"),
        ({"target_modules": {"a": 1}}, "target_modules is no list"),
    ],
)
def test_what_cannot_be_toggled_is_refused(tiny_model, tiny_folder, tmp_path, changes, reason):
    folder = write_peft(tmp_path / "peft", peft_weights(tiny_model.model), **changes)
    with pytest.raises(UserError, match=reason):
        import_adapter(str(folder), WIZARD, str(tiny_folder), tmp_path / "run")
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
