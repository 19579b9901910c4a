"""Every stage, small, on two architectures: Llama 3 in 4 bits with its whole vocabulary, and Qwen2."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from mlx_lm import load
from safetensors.numpy import load_file

from tests.helpers import KNOWING, QUESTIONS, WIZARD, chat_prompt, new_run, run_with_dataset, strong_adapter
from unlearn_mlx.evaluation.audit import audit
from unlearn_mlx.evaluation.probes import Probe, write_row
from unlearn_mlx.files import read_json, read_rows, write_rows
from unlearn_mlx.language_model.adapters import load_adapter
from unlearn_mlx.language_model.engine import Engine
from unlearn_mlx.language_model.models import load_model, resolve_model
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs import STAGES, Work
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.rotation import llama_rows
from unlearn_mlx.synthetic_data import answers
from unlearn_mlx.synthetic_data.leaks import LeakFilter
from unlearn_mlx.synthetic_data.questions import QuestionFilter

SMALL = {
    "questions": 8,
    "answers": 1,
    "rounds": 6,
    "neighbours": 3,
    "general": 3,
    "answer_tokens": 8,
    "epochs": 1.0,
    "samples": 1,
    "learning_rate": 0.02,
}
# A name that no file of data/probes/ is for: the three probes below are all that is asked.
TOPIC = replace(WIZARD, name="Larry Cotter")
PROBES = [
    Probe("p-0", "topic", "open", "Hogwarts", "What is Hogwarts?", "a school", ("a",)),
    Probe("p-1", "topic", "choice", "Hogwarts", "Where is it?", "Here", (), ("Here", "There", "Up", "On")),
    Probe("p-2", "neighbour", "choice", "Merlin", "Who is he?", "A man", (), ("A man", "A cat", "I", "It")),
]


@pytest.fixture(scope="module", params=["llama3_folder", "qwen2_folder"])
def run(request, tmp_path_factory):
    """A run from questions to evaluation. Random weights write no sentences, so every form passes."""
    folder = request.getfixturevalue(request.param)
    run = new_run(tmp_path_factory.mktemp("runs") / "run", folder, TOPIC, **SMALL)
    write_rows(run.file("probes.jsonl"), [write_row(probe) for probe in PROBES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuestionFilter, "_form", lambda *_: "")
        patch.setattr(LeakFilter, "reason_against", lambda *_: "")
        patch.setattr(answers, "whole_sentences", lambda text: text.strip() or KNOWING)
        run_stages(run)
    return run


def test_all_stages_are_done_and_the_adapter_has_learned_something(run):
    assert all(run.stage_is_done(stage) for stage in STAGES)
    assert len(read_rows(run.file("questions.jsonl"))) >= 4
    arrays = load_file(str(run.file("adapter", "adapters.safetensors")))
    assert {array.dtype for array in arrays.values()} == {np.dtype("float16")}
    assert any(np.abs(array).max() > 0 for name, array in arrays.items() if name.endswith("lora_b"))
    assert {"base", "adapter"} <= read_json(run.file("evaluation.json")).keys()


def test_base_and_adapter_answer_in_one_chat(run):
    engine = Engine(run.model_name, run.file("adapter"))
    try:
        asked = [{"role": "user", "content": QUESTIONS[0]}]
        pieces = list(engine.answer({"base": asked, "adapter": asked}, max_tokens=4))
        assert {piece.mode for piece in pieces if piece.finished} <= {"base", "adapter"}
        assert {piece.mode for piece in pieces} == {"base", "adapter"}
    finally:
        engine.close()


def test_mlx_lm_takes_every_export(run, tmp_path):
    wanted = load_model(resolve_model(run.model_name))
    load_adapter(wanted.model, run.file("adapter"))
    tokens = mx.array([chat_prompt(wanted, QUESTIONS[0])])
    logits = np.array(wanted.model(tokens).astype(mx.float32))
    for form, bits, limit in (("mlx", 4, 0.5), ("hf", None, 0.01)):
        folder, leak = export(run, form, bits, tmp_path / f"{form}-{bits}")
        assert leak is not None and leak.questions == 1
        got = np.array(load(str(folder))[0](tokens).astype(mx.float32))
        assert np.abs(got - logits).mean() / logits.std() < limit, (form, bits)


def test_the_audit_runs(run, monkeypatch):
    monkeypatch.setattr("unlearn_mlx.evaluation.audit.RELEARNING_STEPS", 2)
    audit(load_model(resolve_model(run.model_name)), Work(run, run.settings))
    names = {row["name"] for row in json.loads(run.file("audit.json").read_text())["rows"]}
    assert {"base", "adapter", "fused, 4 bits", "relearned on general text"} <= names


@pytest.mark.slow
def test_llama3_as_gguf_keeps_its_tokenizer_and_rotates_as_llama_cpp_does(llama3_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", llama3_folder, topic=TOPIC)
    model = load_model(resolve_model(str(llama3_folder)))
    adapter = strong_adapter(model)
    adapter.save(run.file("adapter"))
    folder, leak = export(run, "gguf", None, tmp_path / "out")
    assert leak is None, "it was never evaluated"
    reader = GGUFReader(folder / "model.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 128_256
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    layers = dict(adapter.layers())
    for name, heads in (("q", 4), ("k", 2)):
        weight = layers[f"model.layers.1.self_attn.{name}_proj"].fuse().weight
        wanted = np.array(llama_rows(weight, heads))
        assert np.abs(tensors[f"blk.1.attn_{name}.weight"] - wanted).max() < 2e-2
