"""Configurations, forms and names that models and adapters really have: right, or refused in one line."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoConfig

from tests.architectures import LLAMA32_ROPE
from tests.helpers import (
    CHAT_TEMPLATE,
    QUESTIONS,
    WIZARD,
    chat_prompt,
    run_with_dataset,
    strong_adapter,
    write_config,
)
from tests.real_templates import with_template
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.models.registry import NAMED_MODELS, name_here, named_model, resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.session.create import new_run
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.gguf import _cut
from unlearn_mlx.sharing.importing import import_adapter


def configured(source: Path, folder: Path, without=(), **changes) -> Path:
    """A copy of a model with another configuration."""
    shutil.copytree(source, folder)
    config = {**read_json(folder / "config.json"), **changes}
    write_config(folder / "config.json", **{key: config[key] for key in config if key not in without})
    return folder


def run_of(folder, path):
    """A run of a model with a random adapter, not evaluated."""
    run = run_with_dataset(path, folder)
    with load_by_name(str(folder)) as model:
        strong_adapter(model).save(run.file("adapter"))
        run.mark("train", "done")
    return run


# -- positions --


def frequencies(width, theta, stretched=None):
    """Radians a position of each pair, as transformers' "default" and "llama3" kinds have them."""
    plain = theta ** -(np.arange(0, width, 2) / width)
    if stretched is None:
        return plain
    waves = 2 * np.pi / plain
    low, high = stretched["low_freq_factor"], stretched["high_freq_factor"]
    length, factor = stretched["original_max_position_embeddings"], stretched["factor"]
    share = np.clip((length / waves - low) / (high - low), 0, 1)
    return (1 - share) * plain / factor + share * plain


def reference_logits(folder, tokens, radians):
    """A Llama written by hand (Touvron et al. 2023), positions rotated by halves, [tokens, vocabulary]."""
    config, weights = read_json(folder / "config.json"), load_file(str(folder / "model.safetensors"))
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    count, width = len(tokens), config["hidden_size"] // heads
    angles = np.arange(count)[:, None] * radians
    cosines, sines = (np.tile(each, 2)[:, None] for each in (np.cos(angles), np.sin(angles)))

    def normed(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

    def rotated(x):
        first, second = np.split(x, 2, axis=-1)
        return x * cosines + np.concatenate([-second, first], axis=-1) * sines

    x = weights["model.embed_tokens.weight"][tokens]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"

        def product(values, name, layer=layer):
            return values @ weights[f"{layer}.{name}.weight"].T

        h = normed(x, f"{layer}.input_layernorm.weight")
        queries = rotated(product(h, "self_attn.q_proj").reshape(count, heads, width))
        keys = rotated(product(h, "self_attn.k_proj").reshape(count, groups, width))
        values = product(h, "self_attn.v_proj").reshape(count, groups, width)
        keys, values = (np.repeat(each, heads // groups, axis=1) for each in (keys, values))
        scores = np.einsum("qhw,khw->hqk", queries, keys) / np.sqrt(width)
        scores = np.where(np.tril(np.ones((count, count), bool)), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + product(np.einsum("hqk,khw->qhw", shares, values).reshape(count, -1), "self_attn.o_proj")
        h = normed(x, f"{layer}.post_attention_layernorm.weight")
        gate = product(h, "mlp.gate_proj")
        x = x + product(gate / (1 + np.exp(-gate)) * product(h, "mlp.up_proj"), "mlp.down_proj")
    return normed(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T


@pytest.mark.parametrize("stretched", [None, LLAMA32_ROPE], ids=["plain", "stretched"])
def test_positions_as_transformers_5_writes_them_count(tiny_folder, tmp_path, stretched):
    """Its configuration has them in ``rope_parameters`` alone; 10,000 was taken for any of them."""
    parameters = {"rope_theta": 500_000.0, "rope_type": "default", **(stretched or {})}
    folder = configured(
        tiny_folder, tmp_path / "model", rope_parameters=parameters, max_position_embeddings=131_072
    )
    read_by_transformers = AutoConfig.from_pretrained(folder).rope_parameters
    assert parameters.items() <= read_by_transformers.items()
    with load_by_name(str(folder)) as model:
        tokens = chat_prompt(model, "Who is Merlin, and where does he live? " * 8)
        logits = np.array(model.model(mx.array([tokens]))[0])
    wanted = reference_logits(folder, list(tokens), frequencies(16, 500_000.0, stretched))
    assert np.abs(logits - wanted).max() < 1e-3 * wanted.std()
    others = reference_logits(folder, list(tokens), frequencies(16, 10_000.0))
    assert np.abs(logits - others).max() > 0.1 * wanted.std()


def test_the_hf_export_says_what_the_model_computed_with(tiny_folder, tmp_path):
    """Also what its configuration leaves to mlx-lm's defaults, which are not transformers'."""
    run = run_of(configured(tiny_folder, tmp_path / "model", ("tie_word_embeddings",)), tmp_path / "run")
    folder, _ = export(run, "hf", None)
    config = AutoConfig.from_pretrained(folder)
    assert config.rope_parameters["rope_theta"] == 10_000.0 and config.tie_word_embeddings is True


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 1_000_000.0),  # what mlx-lm's Qwen2 takes
        ({"rope_parameters": {"rope_theta": 250_000.0, "rope_type": "default"}}, 250_000.0),
    ],
)
def test_the_base_frequency_of_a_gguf_is_the_models(qwen2_folder, tmp_path, changes, theta):
    folder = configured(qwen2_folder, tmp_path / "model", ("rope_theta",), **changes)
    settings = read_json(folder / "tokenizer_config.json")
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    write_config(folder / "tokenizer_config.json", **{**settings, "chat_template": templates})
    exported, _ = export(run_of(folder, tmp_path / "run"), "gguf", 8)
    fields = GGUFReader(exported / "model.gguf").fields
    assert fields["qwen2.rope.freq_base"].contents() == theta
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE, "of two, the default"


# -- how a text is cut --

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = TEKKEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def steps(*patterns, digits=False, use_regex=False):
    """A tokenizer's cut, as its file has it."""
    found = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    found += [pre_tokenizers.Digits(individual_digits=True)] * digits
    found += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    tokenizer = Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(found)
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


@pytest.mark.parametrize(
    "cut",
    [
        steps(TEKKEN),
        steps(GPT_4O),
        steps(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", digits=True),
        steps(digits=True),
        None,
    ],
    ids=["tekken", "GPT-4o", "DeepSeek-Coder", "digits alone", "none"],
)
def test_a_cut_that_only_looks_like_a_known_one_is_none(cut):
    assert _cut(cut) is None


def test_the_cuts_that_are_known_are_told_by_their_whole_pattern(qwen2_folder, llama3_folder):
    assert _cut(steps(digits=True, use_regex=True)) == "smollm"
    for folder, name in ((qwen2_folder, "qwen2"), (llama3_folder, "llama-bpe")):
        assert _cut(json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]) == name


# -- weights in forms of other programs --


def weights_asked_for(hub):
    return [line for line in hub.requests if "safetensors" in line and line.startswith("GET")]


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
def test_a_model_quantized_for_another_program_is_refused_before_its_weights_come(
    on_hub, tiny_folder, tmp_path, method
):
    folder = configured(tiny_folder, tmp_path / "model", quantization_config={"quant_method": method})
    on_hub.add_model("someone/rounded", {path.name: path.read_bytes() for path in folder.iterdir()})
    for name in ("someone/rounded", str(folder)):
        with pytest.raises(UserError, match=f"{method}.*mlx-community"):
            resolve_model(name)
    assert weights_asked_for(on_hub) == []


def test_a_quantization_of_mlx_itself_is_none_of_these(tiny_folder, tmp_path):
    own = {"group_size": 64, "bits": 4}
    folder = configured(tiny_folder, tmp_path / "model", quantization=own, quantization_config=own)
    assert resolve_model(str(folder)).folder == folder


@pytest.mark.parametrize(
    ("changes", "template", "reason"),
    [
        ({"model_type": "bert"}, CHAT_TEMPLATE, "architecture 'bert'"),
        ({"model_type": None}, CHAT_TEMPLATE, "architecture"),
        ({}, None, "no chat template: use an instruct model"),
    ],
)
def test_what_cannot_be_chatted_with_is_refused_before_its_weights_come(
    on_hub, tiny_folder, tmp_path, changes, template, reason
):
    folder = configured(with_template(tiny_folder, tmp_path / "a", template), tmp_path / "b", **changes)
    on_hub.add_model("someone/other", {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(UserError, match=reason):
        resolve_model("someone/other")
    assert weights_asked_for(on_hub) == []


# -- names --


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("unsloth/llama-3-8b-Instruct", "llama3"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "llama3"),
        ("unsloth/Meta-Llama-3-8B-Instruct", "llama3"),
        ("NousResearch/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "llama3.2-1b"),
        ("unsloth/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        # Others: no instruct model, another version, another owner's work.
        ("unsloth/llama-3-8b-bnb-4bit", None),
        ("NousResearch/Meta-Llama-3-8B", None),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", None),
        ("NousResearch/Hermes-2-Pro-Llama-3-8B", None),
        ("someone/Meta-Llama-3-8B-Instruct", None),
    ],
)
def test_a_copy_is_the_model_that_has_a_name_here(workplace, name, here):
    assert named_model(name) is (NAMED_MODELS[here] if here else None)
    assert name_here(name) == (here or name)
    wanted = new_run("Harry Potter", name, "quick", {})
    assert wanted.model_name == (here or name)
    assert (name in wanted.reason) == bool(here), "and it is said"


def test_a_run_that_was_made_by_the_copys_name_goes_on_by_it(workplace, tiny_folder):
    run = run_with_dataset(workplace / "runs" / "harry-potter", tiny_folder)
    run.manifest.model.name = "unsloth/Llama-3.2-1B-Instruct"
    run.save_manifest()
    assert new_run("Harry Potter", "unsloth/Llama-3.2-1B-Instruct", "quick", {}).model_name.startswith(
        "unsloth"
    )


@pytest.mark.parametrize("name", ["a[x]b", "every*thing?", "[!a]"])
def test_a_folder_whose_name_is_a_pattern_works(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / name / "model")
    run = run_of(folder, tmp_path / name / "run")
    exported, _ = export(run, "mlx", None)
    with load_by_name(str(exported)) as model:
        assert chat_prompt(model, QUESTIONS[0])


def test_a_cache_whose_name_is_a_pattern_works(on_hub, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home[x]" / "hub"))
    on_hub.add_model("someone/tiny", {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    with load_by_name("someone/tiny") as model:
        assert "[x]" in str(model.source.folder)


# -- adapters --


@pytest.mark.parametrize(
    ("rename", "shape", "reason"),
    [
        ("model.layers.7.mlp.up_proj.lora_a", None, "it has model.layers.7.mlp.up_proj.lora_a"),
        ("", None, "it lacks model.layers.0.mlp.up_proj.lora_a"),
        ("model.layers.0.mlp.up_proj.lora_a", (32, 4), "is 32 x 4, and 64 x 4 here"),
    ],
)
def test_an_adapter_of_another_model_is_refused_with_the_reason(tiny_model, tmp_path, rename, shape, reason):
    adapter = strong_adapter(tiny_model)
    adapter.save(tmp_path)
    adapter.detach()
    path = tmp_path / "adapters.safetensors"
    weights = load_file(str(path))
    array = weights.pop("model.layers.0.mlp.up_proj.lora_a")
    if rename:
        weights[rename] = array if shape is None else np.zeros(shape, np.float16)
    if shape is None and rename:
        weights["model.layers.0.mlp.up_proj.lora_a"] = array
    mx.save_safetensors(str(path), {name: mx.array(value) for name, value in weights.items()})
    with pytest.raises(UserError, match=reason) as caught:
        load_adapter(tiny_model.model, tmp_path)
    assert "name its own with --model" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "not finite"), (0.0, "changes nothing")])
def test_an_adapter_that_does_nothing_or_nonsense_is_refused(
    tiny_model, tiny_folder, tmp_path, value, reason
):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapters.safetensors"
    weights = {
        name: mx.full(array.shape, value) if name.endswith("lora_b") else mx.array(array)
        for name, array in load_file(str(path)).items()
    }
    mx.save_safetensors(str(path), weights)
    with pytest.raises(UserError, match=reason):
        import_adapter(str(path.parent), WIZARD, str(tiny_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_cannot_be_is_told_by_the_users_own_path(tiny_model, tiny_folder, tmp_path):
    strong_adapter(tiny_model).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({"num_layers": 2}))
    with pytest.raises(UserError, match="lacks 'lora_parameters'") as caught:
        import_adapter(str(path.parent), WIZARD, str(tiny_folder), tmp_path / "run")
    assert str(path) in str(caught.value) and "train again" not in str(caught.value)
