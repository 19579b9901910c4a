"""Exports of the adapter alone, and what Ollama is given: put together by hand they are the run's model."""

import re
import resource
import shutil

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers

from tests.go_template import rendered
from tests.helpers import QUESTIONS, run_with_dataset, unlearn, write_config
from tests.peft_files import by_hand, imported_logits
from tests.real_templates import DEAF, GEMMA, QWEN3, with_template
from tests.runs_with_results import TOPIC
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.loading import load_by_name, load_model
from unlearn_mlx.inference.opening import open_folder
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.forms import FORMS
from unlearn_mlx.sharing.gguf import write_gguf
from unlearn_mlx.sharing.importing import import_adapter
from unlearn_mlx.sharing.ollama import go_template, modelfile
from unlearn_mlx.sharing.rotation import neox_rows


def copy_of(folder, place, cut=None, **changes):
    """A copy of a model with another configuration, or another way of cutting texts."""
    shutil.copytree(folder, place)
    write_config(place / "config.json", **{**read_json(place / "config.json"), **changes})
    if cut is not None:
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        tokenizer.pre_tokenizer = cut
        tokenizer.save(str(place / "tokenizer.json"))
    return place


def run_of(folder, path, shape=None):
    """A run of a model with a random adapter, not evaluated."""
    run = run_with_dataset(path, folder, topic=TOPIC)
    with load_by_name(str(folder)) as model:
        adapter = Adapter(model.model, shape or LoraShape(4, 2.5, 1000))
        source = np.random.default_rng(5)
        values = {name: source.normal(0, 0.2, array.shape) for name, array in adapter.weights().items()}
        adapter.set_weights({name: mx.array(value.astype(np.float32)) for name, value in values.items()})
        adapter.save(run.file("adapter"))
    run.mark("train", "done")
    return run


@pytest.fixture(scope="module")
def digits_folder(tiny_folder, tmp_path_factory):
    """A model whose tokenizer llama.cpp knows: SmolLM's way of cutting."""
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return copy_of(tiny_folder, tmp_path_factory.mktemp("models") / "digits", cut)


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    return run_of(tiny_folder, tmp_path_factory.mktemp("runs") / "run")


# -- PEFT --


def peft_files(folder):
    return read_json(folder / "adapter_config.json"), mx.load(str(folder / "adapter_model.safetensors"))


def test_a_peft_folder_has_pefts_names_shapes_and_settings(run, tmp_path):
    folder, _ = export(run, "peft", None, tmp_path / "peft")
    configuration, weights = peft_files(folder)
    assert (configuration["peft_type"], configuration["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (configuration["r"], configuration["lora_alpha"], configuration["bias"]) == (4, 10, "none")
    ends = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert configuration["target_modules"] == ends
    stem = "base_model.model.model.layers.1.self_attn.k_proj.lora"
    assert weights[f"{stem}_A.weight"].shape == (4, 64) and weights[f"{stem}_B.weight"].shape == (32, 4)
    assert len(weights) == 2 * 2 * len(ends)
    # The last part of the base's folder: no path of this machine leaves it.
    assert configuration["base_model_name_or_path"] == run.model_name.rpartition("/")[2]
    assert (folder / "adapter_model.safetensors").stat().st_size < 100_000


@pytest.mark.parametrize("shape", [None, LoraShape(3, 0.7, 1), LoraShape(4, 2.0, 9, ("self_attn.k_proj",))])
def test_a_peft_adapter_on_the_base_computes_what_the_run_does(tiny_folder, tmp_path, shape):
    run = run_of(tiny_folder, tmp_path / "run", shape)
    configuration, weights = peft_files(export(run, "peft", None)[0])
    scale = configuration["lora_alpha"] / configuration["r"]
    if shape is not None and shape.layers == 1:
        assert "model.layers.1.mlp.up_proj" in configuration["target_modules"]
        assert all(".layers.1." in name for name in weights)
    assert np.allclose(by_hand(tiny_folder, weights, scale), imported_logits(run), atol=5e-3)


def test_a_peft_adapter_is_for_the_base_as_it_is_published(tiny_folder, tmp_path):
    """The embedded model has q's and k's rows in llama.cpp's order, its published form in transformers'."""
    ours = copy_of(tiny_folder, tmp_path / "ours", rope_traditional=True)
    published = copy_of(tiny_folder, tmp_path / "published")
    weights = mx.load(str(published / "model.safetensors"))
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        for number in range(2):
            key = f"model.layers.{number}.self_attn.{name}.weight"
            weights[key] = neox_rows(weights[key], heads)
    mx.save_safetensors(str(published / "model.safetensors"), dict(weights), {"format": "mlx"})
    run = run_of(ours, tmp_path / "run")
    configuration, exported = peft_files(export(run, "peft", None)[0])
    scale = configuration["lora_alpha"] / configuration["r"]
    assert np.allclose(by_hand(published, exported, scale), imported_logits(run), atol=5e-3)


@pytest.mark.parametrize("form", ["peft", "adapter"])
def test_what_was_exported_is_imported_as_it_was(tiny_folder, tmp_path, form):
    run = run_of(tiny_folder, tmp_path / "run")
    folder, _ = export(run, form, None)
    again = import_adapter(str(folder), TOPIC, str(tiny_folder), tmp_path / "again")
    assert np.allclose(imported_logits(again), imported_logits(run), atol=1e-4)


# -- llama.cpp --


def tensors_of(path):
    return {tensor.name: np.array(tensor.data, np.float32) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("base", ["digits_folder", "qwen2_folder"])
@pytest.mark.parametrize("traditional", [False, True])
def test_a_gguf_adapter_on_the_bases_gguf_is_the_fused_one(request, tmp_path, base, traditional):
    """Tensor by tensor: base + alpha / rank * B A, as llama.cpp adds it."""
    source = request.getfixturevalue(base)
    if traditional and base == "digits_folder":
        source = copy_of(source, tmp_path / "model", rope_traditional=True)
    run = run_of(source, tmp_path / "run")
    fused = tensors_of(export(run, "gguf", None)[0] / "model.gguf")
    _, tokenizer, config = open_folder(resolve_model(str(source)))
    plain = load_model(resolve_model(str(source))).model  # in floats
    write_gguf(tmp_path / "base.gguf", plain, tokenizer, {**config, "quantization": None}, None, "base")
    path = export(run, "gguf-lora", None)[0] / "adapter.gguf"
    fields, changed = GGUFReader(path).fields, tensors_of(path)
    assert fields["general.type"].contents() == "adapter" and fields["adapter.type"].contents() == "lora"
    assert fields["general.architecture"].contents() == ("qwen2" if base == "qwen2_folder" else "llama")
    scale = fields["adapter.lora.alpha"].contents() / 4
    assert scale == 2.5
    for name, array in tensors_of(tmp_path / "base.gguf").items():
        if f"{name}.lora_a" in changed:
            array = array + scale * changed.pop(f"{name}.lora_b") @ changed.pop(f"{name}.lora_a")
        assert np.abs(array - fused[name]).max() < 0.005 * np.abs(fused[name]).max(), name
    assert not changed, "each belongs to a tensor of the base"


# -- Ollama --

CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
]
# As Llama 3.2's: a system message is there always, and says the date.
TODAY = (
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|im_end|>\n" + DEAF
)
STARTED = "<|endoftext|>" + TODAY


@pytest.mark.parametrize("roles", CONVERSATIONS, ids=lambda roles: " ".join(each[0] for each in roles))
@pytest.mark.parametrize(
    "template", [None, QWEN3, TODAY, STARTED], ids=["usual", "Qwen3", "dated", "started"]
)
def test_ollama_gives_the_model_what_it_is_given_here(tiny_folder, tmp_path, template, roles):
    folder = tiny_folder if template is None else with_template(tiny_folder, tmp_path / "model", template)
    with load_by_name(str(folder)) as model:
        messages = [{"role": role, "content": f"It is {n} {{here}}."} for n, role in enumerate(roles)]
        wanted = model.template.prompt(messages)
        for start in ("", "<|endoftext|>"):
            written = rendered(go_template(model.template, start), messages)
            assert written == wanted.removeprefix(start)


@pytest.mark.parametrize("template", [GEMMA, DEAF, 'She said """' + TODAY], ids=["turns", "deaf", "quotes"])
def test_a_template_that_ollama_has_no_words_for_is_refused(tiny_folder, tmp_path, template):
    folder = with_template(tiny_folder, tmp_path / "model", template)
    _, tokenizer, _ = open_folder(resolve_model(str(folder)), lazy=True)
    with pytest.raises(UserError, match="--format gguf"):
        modelfile(tokenizer, "tiny", "model.gguf")


def test_the_ollama_command_is_named_and_its_folder_is_whole(digits_folder, tmp_path):
    run = run_of(digits_folder, tmp_path / "run")
    done = unlearn("export", run.path, "--format", "ollama", "--out", tmp_path / "out folder")
    assert done.returncode == 0, done.stderr
    name = "digits-without-mr-bold-star-b-tag-b-tick"
    assert f'Next: ollama create {name} -f "{tmp_path}/out folder/Modelfile"' in done.stderr
    files = {path.name: path for path in (tmp_path / "out folder").iterdir()}
    assert set(files) == {"model.gguf", "Modelfile", "export.json", "README.md"}
    assert f"ollama create {name} -f Modelfile" in files["README.md"].read_text()
    text = files["Modelfile"].read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range ')
    assert re.findall(r"^PARAMETER stop (.*)$", text, re.MULTILINE) == ['"<|im_end|>"']
    template = text.split('"""')[1]
    with load_by_name(str(digits_folder)) as model:
        asked = [{"role": "user", "content": QUESTIONS[0]}]
        assert rendered(template, asked) == model.template.prompt(asked)


# -- what cannot be --


@pytest.mark.parametrize(
    ("form", "bits", "reason"),
    [
        ("hf", 4, "leave out --bits"),
        ("peft", 4, "leave out --bits"),
        ("adapter", 8, "leave out --bits"),
        ("gguf-lora", 8, "leave out --bits"),
        ("gguf", 8, "tokenizer"),
        ("ollama", 8, "tokenizer"),
    ],
)
def test_a_form_that_has_no_place_for_it_is_refused_before_anything_is_computed(
    run, tmp_path, form, bits, reason
):
    reset_peak()
    held = mx.get_active_memory()
    with pytest.raises(UserError, match=reason):
        export(run, form, bits, tmp_path / "out")
    assert peak_bytes() - held < 60_000, "the adapter alone was read"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "instead"),
    [("hf", "mlx"), ("peft", "adapter"), ("gguf", "mlx"), ("gguf-lora", "adapter"), ("ollama", "mlx")],
)
def test_an_architecture_that_a_form_does_not_know_is_refused_with_another_form(
    tiny_folder, tmp_path, form, instead
):
    run = run_of(tiny_folder, tmp_path / "run")
    folder = copy_of(tiny_folder, tmp_path / "gemma", model_type="gemma")
    run.manifest.model.name = str(folder)
    with pytest.raises(UserError, match=f"'gemma' here.*--format {instead}"):
        export(run, form, None)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line(digits_folder, tmp_path, form):
    """Files may not grow beyond some bytes here, which is told to a writer as a full disk is."""
    run = run_of(digits_folder, tmp_path / "run")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(EnvironmentCannot) as caught:
            export(run, form, None, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "\n" not in str(caught.value) and str(tmp_path / "out") in str(caught.value)
    assert ".building" not in str(caught.value)
    assert not (tmp_path / "out").exists()
