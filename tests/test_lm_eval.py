"""The lm-evaluation-harness against the server: it scores the base and the adapter by name."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from tests.test_harness import CHOICES, QUESTION, TASK
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.sharing.serve.server import model_names

pytestmark = pytest.mark.slow


def preferred(model, pairs):
    """Which of each pair the model finds likelier behind the question, and how likely the first is."""
    context = model.text_tokens(QUESTION)
    ends = [[model.text_tokens(f"{QUESTION} {text}")[len(context) :] for text in pair] for pair in pairs]
    scores = model.log_probabilities([context] * len(pairs), ends)
    return [int(second.sum() > first.sum()) for first, second in scores]


@pytest.mark.parametrize("sent", ["tokens", "texts"])
def test_lm_eval_scores_base_and_adapter(server, served_runs, tiny_model, tiny_folder, tmp_path, sent):
    pytest.importorskip("lm_eval", reason="the extra 'benchmarks' is not installed")
    pytest.importorskip("tenacity", reason="the extra 'benchmarks' is not installed")
    folder = tmp_path / "tasks"
    folder.mkdir()
    pairs = list(itertools.combinations(CHOICES, 2))
    found = {}
    for name, adapter in model_names(served_runs).items():
        attached = load_adapter(tiny_model.model, adapter) if adapter else None
        found[name] = preferred(tiny_model, pairs)
        if attached:
            attached.detach()
    base = found[server.names[0]]
    rows = [
        json.dumps({"question": QUESTION, "choices": pair, "answer": right})
        for pair, right in zip(pairs, base, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "colours.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    for name in server.names:
        wanted = sum(a == b for a, b in zip(found[name], base, strict=True)) / len(pairs)
        assert accuracy(server, name, tiny_folder, folder, tmp_path / name, sent) == pytest.approx(wanted)
    assert any(found[name] != base for name in server.names[1:])


def accuracy(server, name, tokenizer, tasks, out, sent):
    """What ``lm_eval --model local-completions`` says."""
    options = {
        "model": name,
        "base_url": f"{server.address}/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": sent == "tokens",
        "num_concurrent": 3,
        "max_retries": 1,
    }
    arguments = ["--model", "local-completions", "--tasks", "colours", "--include_path", tasks]
    arguments += ["--model_args", ",".join(f"{key}={value}" for key, value in options.items())]
    arguments += ["--output_path", out, "--batch_size", 4]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_DATASETS_CACHE": str(out / "cache")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    return json.loads(results.read_text())["results"]["colours"]["acc,none"]
