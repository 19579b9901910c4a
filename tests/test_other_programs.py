"""Exports in the programs that they are for: transformers and llama.cpp compute what we compute.

Gigabytes of other people's code: ``uv run --group compare pytest -m slow tests/test_other_programs.py``.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.architectures import LLAMA32_ROPE, write_llama3_model
from tests.helpers import QUESTIONS, chat_prompt, run_with_dataset, strong_adapter
from tests.runs_with_results import TOPIC
from unlearn_mlx.inference.adapters import Adapter, LoraShape, load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.export import export

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


@pytest.mark.parametrize("bits", [None, 8])
def test_llama_cpp_says_what_we_say(run, wanted, tmp_path, bits):
    xllamacpp = pytest.importorskip("xllamacpp")
    folder, _ = export(run, "gguf", bits, tmp_path / "gguf")
    tokens = list(chat_prompt(wanted, QUESTIONS[0] if bits else LONG))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 2048, 1, 0
    server = xllamacpp.Server(parameters)

    def asked(prompt):
        options = {"n_predict": 1, "n_probs": 50, "temperature": 0.0, "cache_prompt": False}
        return server.handle_completions({"prompt": prompt, **options})

    # llama.cpp writes the start token itself where the tokenizer of the hub does.
    text = wanted.tokenizer.decode(tokens).removeprefix("<|begin_of_text|>")
    answers = [asked(tokens), asked(text)]
    counts = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert counts == [len(tokens)] * 2, "it cuts the text alike"
    ours = logits_of(wanted, tokens)[-1]
    spread = ours.std()
    ours = ours - np.log(np.exp(ours - ours.max()).sum()) - ours.max()
    for answer in answers:
        first = answer["choices"][0]["logprobs"]["content"][0]
        theirs = {top["id"]: top["logprob"] for top in first["top_logprobs"]}
        distances = [abs(theirs[token] - ours[token]) for token in theirs]
        print(f"llama.cpp, {bits} bits: mean difference {np.mean(distances):.2g}, spread {spread:.2g}")
        limit = (0.02 if bits is None else 0.1) * spread
        assert np.mean(distances) < limit
        assert ours.max() - ours[max(theirs, key=theirs.get)] < limit, "its first choice is one of ours"


def test_the_gguf_of_each_is_a_single_file_with_a_card(run, tmp_path):
    folder, leak = export(run, "gguf", 4, tmp_path / "gguf")
    assert leak is None, "it was never evaluated"
    assert {path.name for path in Path(folder).iterdir()} == {"model.gguf", "export.json", "README.md"}
