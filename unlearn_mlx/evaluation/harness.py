"""Tasks of the lm-evaluation-harness (Gao et al. 2023) with the adapter off and on.

Scoring is mlx-lm's own, so that metrics can be held against other people's. What stands here hands
it a model that is loaded already, and asks every question twice.
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.runs.files import write_json
from unlearn_mlx.runs.run import Run

BATCH_SIZE = 8


def run_tasks(
    model: ChatModel, run: Run, tasks: Sequence[str], folder: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Score base and adapter on tasks, and write benchmarks.json into the run.

    ``folder`` holds task files of one's own, for a machine without the hub; ``limit`` is the most
    questions of each task. Returns {"tasks": {task: {metric: {"base", "adapter", "error"}}}, ...}; the
    error is the base's standard error, as the harness estimates it.

    Raises:
        EnvironmentCannot: where lm-eval is not installed, or a task's data cannot be had.
        UserError: for a task that is not known.
    """
    folder_of_adapter = run.finished_adapter()
    try:
        import lm_eval  # noqa: F401 (what was imported of it before would hide that it is gone)
        from lm_eval.tasks import TaskManager
        from mlx_lm.evaluate import MLXLM
    except ImportError:
        raise EnvironmentCannot("lm-eval is not installed: run 'uv sync --extra benchmarks'") from None

    if folder is not None and not folder.is_dir():
        raise UserError(f"no folder at {folder}: name the one that holds the tasks' files")
    # Only what the user names is read; a task's own Python stays untrusted unless it lies in that folder.
    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise UserError(
            f"no task '{unknown[0]}': 'uv run lm-eval ls tasks' lists them, --include adds a folder"
        )

    judged = MLXLM.__new__(MLXLM)  # its own way in would load the weights a second time
    super(MLXLM, judged).__init__()
    judged._model, judged.tokenizer = model.model, model.tokenizer
    judged._max_tokens, judged._batch_size, judged._sampler = None, BATCH_SIZE, None
    judged.use_chat_template = True
    judged.apply_chat_template = partial(_as_chat, model)

    base = _metrics(judged, tasks, manager, limit)
    adapter = load_adapter(model.model, folder_of_adapter)
    try:
        changed = _metrics(judged, tasks, manager, limit)
    finally:
        adapter.detach()
    told = {"lm_eval": version("lm_eval"), "limit": limit, "tasks": _side_by_side(base, changed)}
    write_json(run.file("benchmarks.json"), told)
    return told


def _as_chat(model: ChatModel, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A conversation as everywhere else here; without the prompt, its last message is an answer begun."""
    if add_generation_prompt:
        return model.template.prompt(history)
    return model.template.prompt(history[:-1]) + history[-1]["content"]


def _metrics(judged: Any, tasks: Sequence[str], manager: Any, limit: int | None) -> dict[str, dict[str, Any]]:
    """What the harness measures of the model as it is now: {task: {metric: value}}."""
    import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            model=judged,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=True,
        )
    except (OSError, ConnectionError) as error:
        raise EnvironmentCannot(
            f"a task's data cannot be had ({_first_line(error)}); --include a local one"
        ) from None
    results: dict[str, dict[str, Any]] = found["results"]
    return results


def _side_by_side(
    base: dict[str, dict[str, Any]], adapter: dict[str, dict[str, Any]]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """{task: {metric: {"base", "adapter", "error"}}} of the metrics that are numbers."""
    return {
        task: {
            metric.removesuffix(",none"): {
                "base": float(value),
                "adapter": float(adapter[task][metric]),
                "error": _number(values.get(metric.replace(",", "_stderr,"))),
            }
            for metric, value in values.items()
            if _number(value) is not None and "_stderr" not in metric and metric != "sample_len"
        }
        for task, values in base.items()
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
