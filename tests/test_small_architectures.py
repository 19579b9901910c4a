"""Every stage, small, on two architectures: Llama 3 in 4 bits with its whole vocabulary, and Qwen2."""

import json
import shutil
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import openai
import pytest
from mlx_lm import load
from safetensors.numpy import load_file

from tests.helpers import QUESTIONS, chat_prompt, stop_after
from tests.whole_runs import any_sentence_passes, whole_run
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.evaluation.audit import audit
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.files import read_json, read_rows
from unlearn_mlx.runs.run import STAGES, Work, open_run
from unlearn_mlx.sharing.export import export
from unlearn_mlx.sharing.serve.server import Server, model_names


@pytest.fixture(scope="module", params=["llama3_folder", "qwen2_folder"])
def run(request, tmp_path_factory):
    """A run from questions to evaluation."""
    folder = request.getfixturevalue(request.param)
    run = whole_run(tmp_path_factory.mktemp("runs") / "run", folder)
    with any_sentence_passes():
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
        # At its full strength one of these says halves of characters alone.
        pieces = list(engine.answer({"base": asked, "adapter": asked}, strength=0.1, max_tokens=8))
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


def test_a_run_that_was_stopped_in_every_stage_ends_with_the_same_bytes(run, tmp_path):
    again = whole_run(tmp_path / "again", Path(run.model_name))
    shutil.copy(run.file("probes.jsonl"), again.path)
    with any_sentence_passes():
        for stage in STAGES:
            with pytest.raises(Cancelled):
                run_stages(again, [stage], stop_after(2))
            assert not again.stage_is_done(stage)
            run_stages(open_run(again.path), [stage])
            again = open_run(again.path)
    for name in ("questions.jsonl", "answers.jsonl", "adapter/adapters.safetensors", "dataset/train.jsonl"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name
    results = [read_json(each.file("evaluation.json")) for each in (run, again)]
    assert results[0]["probes"] == results[1]["probes"]


def test_an_openai_client_gets_what_the_chat_says(run):
    names = list(model_names([run]))
    server = Server(run.model_name, model_names([run]), 0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    asked = [{"role": "user", "content": QUESTIONS[0]}]
    try:
        client = openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=60)
        said = {
            name: client.chat.completions.create(model=name, messages=asked, max_tokens=8, temperature=0)
            for name in names
        }
    finally:
        server.close()
        thread.join(30)
    model = load_model(resolve_model(run.model_name))
    adapter = load_adapter(model.model, run.file("adapter"))
    for name in names:
        adapter.switch(name == names[1])
        wanted = generate(model, [Request("a", chat_prompt(model, QUESTIONS[0]), 8)], 0)[0].text
        assert said[name].choices[0].message.content == wanted.rstrip("\ufffd")


def test_the_audit_runs(run, monkeypatch):
    monkeypatch.setattr("unlearn_mlx.evaluation.audit.RELEARNING_STEPS", 2)
    audit(load_model(resolve_model(run.model_name)), Work(run, run.settings))
    names = {row["name"] for row in json.loads(run.file("audit.json").read_text())["rows"]}
    assert {"base", "adapter", "fused, 4 bits", "relearned on general text"} <= names
