import json

import pytest

from tests.helpers import complaint, new_run, strong_adapter, unlearn
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.evaluation import harness
from unlearn_mlx.language_model.chat_model import ChatModel

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


@pytest.fixture
def adapted(tmp_path, tiny_folder, tiny_model: ChatModel):
    run = new_run(tmp_path / "run", tiny_folder)
    adapter = strong_adapter(tiny_model)
    adapter.save(run.file("adapter"))
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
    # Each possible answer is right in a row of its own, so that whatever is chosen counts in one.
    choices = ["a castle", "Tokyo in Japan", "the sea"]
    rows.write_text(
        "".join(json.dumps({"question": "Is it", "choices": choices, "answer": n}) + "\n" for n in range(3))
    )
    (folder / "colours.yaml").write_text(TASK.format(rows=rows))
    told = harness.run_tasks(tiny_model, adapted, ["colours"], folder)
    accuracy = told["tasks"]["colours"]["acc"]
    assert accuracy["base"] == accuracy["adapter"] == pytest.approx(1 / 3)
    assert json.loads(adapted.file("benchmarks.json").read_text()) == told
    shown = unlearn("benchmark", adapted.path, "colours", "--include", folder, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "colours" in shown.stdout and "0.333" in shown.stdout
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
