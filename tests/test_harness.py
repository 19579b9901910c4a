import itertools
import json

import pytest

from tests.helpers import complaint, new_run, strong_adapter, unlearn
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.evaluation import harness
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.chat_model import ChatModel

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

QUESTION = "Is it"
CHOICES = ["a castle", "Tokyo in Japan", "the sea", "rye bread", "hot rock", "a wizard of old tales"]


def preferred(model: ChatModel, pairs):
    """Which of each pair of answers the model finds likelier, as the harness asks for them."""
    prompt = model.chat_tokens([{"role": "user", "content": QUESTION}])
    texts = [[model.text_tokens(choice) for choice in pair] for pair in pairs]
    scores = model.log_probabilities([prompt] * len(pairs), texts)
    return [int(second.sum() > first.sum()) for first, second in scores]


@pytest.fixture
def adapted(tmp_path, tiny_folder, tiny_model: ChatModel):
    run = new_run(tmp_path / "run", tiny_folder)
    adapter = strong_adapter(tiny_model)
    adapter.save(run.file("adapter"))
    run.mark("train", "done")
    adapter.detach()
    return run


def test_a_task_from_a_file_is_scored_with_the_adapter_off_and_on(
    tmp_path, tiny_model, adapted, tiny_folder, monkeypatch
):
    pytest.importorskip("lm_eval", reason="the extra 'benchmarks' is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    # Right is what the base alone finds likelier, so that it knows all and a changed model does not.
    pairs = list(itertools.combinations(CHOICES, 2))
    right = {whose: preferred(tiny_model, pairs) for whose in ("base",)}
    adapter = load_adapter(tiny_model.model, adapted.file("adapter"))
    right["adapter"] = preferred(tiny_model, pairs)
    adapter.detach()
    rows.write_text(
        "".join(
            json.dumps({"question": QUESTION, "choices": pair, "answer": answer}) + "\n"
            for pair, answer in zip(pairs, right["base"], strict=True)
        )
    )
    (folder / "colours.yaml").write_text(TASK.format(rows=rows))
    told = harness.run_tasks(tiny_model, adapted, ["colours"], folder)
    accuracy = told["tasks"]["colours"]["acc"]
    agreed = sum(a == b for a, b in zip(right["base"], right["adapter"], strict=True))
    assert accuracy["base"] == 1 > agreed / len(pairs)
    assert accuracy["adapter"] == pytest.approx(agreed / len(pairs))
    assert json.loads(adapted.file("benchmarks.json").read_text()) == told
    shown = unlearn("benchmark", adapted.path, "colours", "--include", folder, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "colours" in shown.stdout and "1.000" in shown.stdout
    assert f"{agreed / len(pairs):.3f}" in shown.stdout
    with pytest.raises(UserError, match="no task 'colour'"):
        harness.run_tasks(tiny_model, adapted, ["colour"], folder)


def test_without_the_harness_the_way_to_it_is_named(tiny_model, adapted, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(EnvironmentCannot, match="uv sync --extra benchmarks"):
        harness.run_tasks(tiny_model, adapted, ["arc_easy"])


def test_zero_questions_are_refused(adapted):
    refused = unlearn("benchmark", adapted.path, "arc_easy", "--limit", "0")
    assert refused.returncode == 2
    assert "at least one question" in complaint(refused.stderr)
