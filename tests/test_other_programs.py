"""Exports in the programs that they are for, transformers, PEFT and llama.cpp, and adapters that PEFT made:
they compute what we compute.

Gigabytes of other people's code: ``uv run --group compare pytest -m slow tests/test_other_programs.py``.
"""

import json
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.architectures import LLAMA32_ROPE, write_llama3_model
from tests.helpers import QUESTIONS, chat_prompt, run_with_dataset, strong_adapter
from tests.runs_with_results import TOPIC
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, attached, load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.importing import import_adapter
from unlearn_mlx.sharing.ollama import go_template
from unlearn_mlx.sharing.peft import read_peft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama32_folder(tmp_path_factory):
    """As Llama 3.2: long waves stretched, heads wider than a share of the width, one matrix for both ends."""
    folder = tmp_path_factory.mktemp("models") / "llama32"
    return write_llama3_model(
        folder,
        rope_scaling=LLAMA32_ROPE,
        max_position_embeddings=131_072,
        head_dim=32,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module", params=["smollm2", "llama3_folder", "llama32_folder", "qwen2_folder"])
def run(request, tmp_path_factory):
    """A model with a random adapter, not evaluated."""
    name = request.param if request.param == "smollm2" else str(request.getfixturevalue(request.param))
    run = run_with_dataset(tmp_path_factory.mktemp("runs") / "run", name, topic=TOPIC)
    model = load_model(resolve_model(name))
    if name == "smollm2":
        gentle_adapter(model).save(run.file("adapter"))
    else:
        strong_adapter(model).save(run.file("adapter"))
    run.mark("train", "done")
    return run


def gentle_adapter(model):
    """A real model stays one: its likeliest tokens are not far behind the first."""
    adapter = Adapter(model.model, LoraShape(4, 4.0, 1000))
    source = np.random.default_rng(0)
    adapter.set_weights(
        {
            name: mx.array(source.normal(0, 0.01, value.shape).astype(np.float32))
            for name, value in adapter.weights().items()
        }
    )
    return adapter


def run_of_the_base(name, path):
    """A run whose adapter changes nothing: fused it is the base, in any form."""
    run = run_with_dataset(path, name, topic=TOPIC)
    Adapter(load_model(resolve_model(str(name))).model, LoraShape(1, 1.0, 1)).save(run.file("adapter"))
    run.mark("train", "done")
    return run


@pytest.fixture(scope="module")
def base(run, tmp_path_factory):
    return run_of_the_base(run.model_name, tmp_path_factory.mktemp("runs") / "base")


@pytest.fixture(scope="module")
def wanted(run):
    """The run's model with its adapter on: what an export stands for."""
    model = load_model(resolve_model(run.model_name))
    load_adapter(model.model, run.file("adapter"))
    return model


def logits_of(model, tokens):
    return np.array(model.model(mx.array([tokens]))[0].astype(mx.float32))


# So long that stretched waves differ from plain ones.
LONG = "Who is Harry Potter, born in 1980?\n\n def f(n):\n\treturn n\n" + "word and dragons, " * 100


def test_transformers_computes_the_same_logits(run, wanted, tmp_path):
    """As our own program does on the same folder; and both as the run but for half precision."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = export(run, "hf", None, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = list(chat_prompt(wanted, LONG))
    messages = [{"role": "user", "content": LONG}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(asked) == tokens
    with torch.no_grad():
        logits = theirs(torch.tensor([tokens])).logits[0].numpy()
    same = np.abs(logits - logits_of(load_model(resolve_model(str(folder))), tokens))
    near = np.abs(logits - logits_of(wanted, tokens))
    print(f"transformers: {same.max():.2g} at most on the folder, {near.mean():.2g} on average from the run")
    assert same.max() < 5e-3 * logits.std()
    assert near.mean() < 0.01 * logits.std()


def test_peft_puts_our_adapter_on_the_base(run, base, wanted, tmp_path):
    """As our own program does on the same base; and both as the run but for half precision."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder, _ = export(run, "peft", None, tmp_path / "peft")
    base_folder, _ = export(base, "hf", None, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, folder)
    tokens = list(chat_prompt(wanted, LONG))
    with torch.no_grad():
        logits = theirs(torch.tensor([tokens])).logits[0].numpy()
    source = resolve_model(str(base_folder))
    ours = load_model(source)
    plain = logits_of(ours, tokens)
    attached(ours.model, *read_peft(folder, source), folder)
    same = np.abs(logits - logits_of(ours, tokens))
    near = np.abs(logits - logits_of(wanted, tokens))
    print(f"PEFT: {same.max():.2g} at most on the base, {near.mean():.2g} on average from the run")
    assert same.max() < 5e-3 * logits.std()
    assert near.mean() < 0.01 * logits.std()
    assert np.abs(logits - plain).mean() > 3 * near.mean(), "it changes the base"


def asked_of_llama_cpp(prompts, **files):
    """The likeliest next tokens by llama.cpp with their log-probabilities, and how long each prompt is."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(files["model"])
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 2048, 1, 0
    if "adapter" in files:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(files["adapter"]), 1.0)]
    server = xllamacpp.Server(parameters)
    options = {"n_predict": 1, "n_probs": 50, "temperature": 0.0, "cache_prompt": False}
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, **options})
        first = answer["choices"][0]["logprobs"]["content"][0]
        found = {top["id"]: top["logprob"] for top in first["top_logprobs"]}
        yield found, answer["usage"]["prompt_tokens"]


def log_probabilities(model, tokens):
    """Of each next token by our own program, and the spread of its logits."""
    ours = logits_of(model, tokens)[-1]
    return ours - np.log(np.exp(ours - ours.max()).sum()) - ours.max(), ours.std()


def distance(theirs, ours):
    return np.mean([abs(theirs[token] - ours[token]) for token in theirs])


def test_llama_cpp_puts_our_adapter_on_the_base(run, base, wanted, tmp_path):
    adapter = export(run, "gguf-lora", None, tmp_path / "lora")[0] / "adapter.gguf"
    model = export(base, "gguf", None, tmp_path / "base")[0] / "model.gguf"
    tokens = list(chat_prompt(wanted, LONG))
    ours, spread = log_probabilities(wanted, tokens)
    ((theirs, _),) = asked_of_llama_cpp([tokens], model=model, adapter=adapter)
    ((plain, _),) = asked_of_llama_cpp([tokens], model=model)
    print(f"llama.cpp --lora: mean difference {distance(theirs, ours):.2g}, spread {spread:.2g}")
    assert distance(theirs, ours) < 0.02 * spread
    assert ours.max() - ours[max(theirs, key=theirs.get)] < 0.02 * spread
    assert distance(plain, ours) > 3 * distance(theirs, ours), "it changes the base"


@pytest.mark.parametrize("bits", [None, 8])
def test_llama_cpp_says_what_we_say(run, wanted, tmp_path, bits):
    folder, _ = export(run, "gguf", bits, tmp_path / "gguf")
    tokens = list(chat_prompt(wanted, QUESTIONS[0] if bits else LONG))
    # llama.cpp writes the start token itself where the tokenizer of the hub does.
    text = wanted.tokenizer.decode(tokens).removeprefix("<|begin_of_text|>")
    ours, spread = log_probabilities(wanted, tokens)
    for theirs, count in asked_of_llama_cpp([tokens, text], model=folder / "model.gguf"):
        assert count == len(tokens), "it cuts the text alike"
        print(f"llama.cpp, {bits} bits: mean difference {distance(theirs, ours):.2g}, spread {spread:.2g}")
        limit = (0.02 if bits is None else 0.1) * spread
        assert distance(theirs, ours) < limit
        assert ours.max() - ours[max(theirs, key=theirs.get)] < limit, "its first choice is one of ours"


def test_the_gguf_of_each_is_a_single_file_with_a_card(run, tmp_path):
    folder, leak = export(run, "gguf", 4, tmp_path / "gguf")
    assert leak is None, "it was never evaluated"
    assert {path.name for path in Path(folder).iterdir()} == {"model.gguf", "export.json", "README.md"}


# -- adapters that PEFT made --


@pytest.fixture(scope="module")
def published(untied_folder, tmp_path_factory):
    """A model as transformers has it, whose head is its own."""
    return export(run_of_the_base(untied_folder, tmp_path_factory.mktemp("runs") / "base"), "hf", None)[0]


LINEAR = ["q_proj", "v_proj"]


def made_by_peft(published, folder, **settings):
    """Save an adapter with random A and B, and return what PEFT computes with it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    usual = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **{**usual, **settings}))
    adapted.eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
        logits = adapted(torch.tensor([PROMPT])).logits[0].numpy()
    adapted.save_pretrained(folder)
    return logits


PROMPT = list(range(3, 40))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 16}},
        {"rank_pattern": {r"^model\.layers\.0\..*q_proj": 8}, "use_rslora": True},
        {"target_modules": r".*\.layers\.\d+\.mlp\.(up|down)_proj"},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"exclude_modules": ["v_proj"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda settings: " ".join(settings) or "usual",
)
def test_an_adapter_that_peft_made_computes_what_it_does_there(published, tmp_path, settings):
    logits = made_by_peft(published, tmp_path / "theirs", **settings)
    run = import_adapter(str(tmp_path / "theirs"), TOPIC, str(published), tmp_path / "run")
    model = load_model(resolve_model(str(published)))
    plain = logits_of(model, PROMPT)
    load_adapter(model.model, run.file("adapter"))
    distance = np.abs(logits_of(model, PROMPT) - logits)
    print(f"PEFT's, {settings}: {distance.max():.2g} at most, spread {logits.std():.2g}")
    assert distance.max() < 5e-3 * logits.std()
    assert np.abs(plain - logits).max() > 0.1 * logits.std()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: lm_head"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "only LoRA on linear layers"),
        ({"trainable_token_indices": [5, 6]}, "trained tokens"),
    ],
)
def test_what_peft_can_do_beyond_is_refused_with_the_reason(published, tmp_path, settings, reason):
    made_by_peft(published, tmp_path / "theirs", **settings)
    with pytest.raises(UserError, match=reason) as caught:
        import_adapter(str(tmp_path / "theirs"), TOPIC, str(published), tmp_path / "run")
    assert "another model" not in str(caught.value) and "\n" not in str(caught.value)


# -- Ollama's template, in Go itself --

PROGRAM = """
package main

import ("encoding/json"; "os"; "text/template")

type message struct { Role, Content string }

func main() {
	var given struct { Template string; Messages []*message }
	if json.NewDecoder(os.Stdin).Decode(&given) != nil { os.Exit(2) }
	made := template.Must(template.New("").Parse(given.Template))
	if made.Execute(os.Stdout, map[string]any{"Messages": given.Messages}) != nil { os.Exit(3) }
}
"""


def test_go_writes_what_our_template_writes(run, wanted, tmp_path):
    """Where there is a Go: ``PATH=…/go/bin:$PATH``."""
    go = shutil.which("go") or pytest.skip("no Go here")
    (tmp_path / "main.go").write_text(PROGRAM)
    start = wanted.tokenizer.decode(wanted.special_tokens.beginning)
    for roles in (["user"], ["system", "user"], ["system", "user", "assistant", "user"]):
        messages = [{"role": role, "content": f"It is {n} {{here}}."} for n, role in enumerate(roles)]
        given = json.dumps({"Template": go_template(wanted.template, start), "Messages": messages})
        done = subprocess.run(
            [go, "run", "main.go"], cwd=tmp_path, input=given, capture_output=True, text=True, timeout=300
        )
        assert done.stdout == wanted.template.prompt(messages).removeprefix(start), done.stderr
