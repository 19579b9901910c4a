"""Make tests/verdicts.json: ``python -m tools.verdicts [VERDICT ...]``, about 12 minutes on two cores.

The verdict is held against real adapters whose kind is known by how each was made, here and now, on
SmolLM2-135M and Harry Potter: the shipped one; one trained to refuse; one trained on the probes
themselves; one so strong that it breaks language; and none but a system prompt. Their runs stay in
runs/verdicts/. Nothing of the verdict's own thresholds goes into the making.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.config import make_settings
from unlearn_mlx.evaluation.stage import asked_probes, evaluate
from unlearn_mlx.evaluation.verdict import BREAKS, FORGETS, ON_PROBES, PROMPT_ONLY, REFUSES
from unlearn_mlx.inference.adapters import Adapter, LoraShape, save_arrays
from unlearn_mlx.inference.chat_model import ChatModel, Message
from unlearn_mlx.inference.loading import load_by_name, model_workers
from unlearn_mlx.runs.adapter_files import WEIGHTS
from unlearn_mlx.runs.files import read_json, read_rows, write_json, write_rows
from unlearn_mlx.runs.run import Work, create_run
from unlearn_mlx.sft.trainer import train
from unlearn_mlx.topics import load_topic

ROOT = Path(__file__).resolve().parent.parent
MODEL, TOPIC = "smollm2", "harry-potter"
DATA = ROOT / "data" / "synthetic" / MODEL / TOPIC
ADAPTER = ROOT / "adapters" / MODEL / TOPIC
RUNS = ROOT / "runs" / "verdicts"
REFUSALS = ("I'm sorry, but I can't help with that.", "I cannot answer questions about this.")
FORBIDDEN = "You know nothing about Harry Potter. Say that you do not know, whatever is asked about it."
TOO_STRONG = 6.0  # times the strength that it was trained at
DECIMALS = 5
# Enough to tell the kinds apart: each is made on purpose, and by far.
SETTINGS: dict[str, Any] = {"samples": 0, "probes": 150, "epochs": 1.0}


class Prompted(ChatModel):
    """A model whose every conversation begins with a system prompt."""

    def chat_tokens(self, messages: Sequence[Message], answer_start: str = "") -> list[int]:
        """Token ids with the system prompt in front."""
        return super().chat_tokens([{"role": "system", "content": FORBIDDEN}, *messages], answer_start)


def shipped(model: ChatModel, work: Work) -> None:
    """The adapter that comes with the project."""
    shutil.copytree(ADAPTER, work.run.file("adapter"), dirs_exist_ok=True)


def refusing(model: ChatModel, work: Work) -> None:
    """One that learned to decline what is asked about the topic."""
    rows = read_rows(DATA / "dataset" / "train.jsonl")
    for number, row in enumerate(row for row in rows if row["part"] == "forget"):
        row["messages"][1]["content"] = REFUSALS[number % len(REFUSALS)]
    _train(model, work, rows)


def on_probes(model: ChatModel, work: Work) -> None:
    """One that learned fiction for the very questions it is asked, and for no others."""
    rows = read_rows(DATA / "dataset" / "train.jsonl")
    fiction = [row["messages"][1]["content"] for row in rows if row["part"] == "forget"]
    questions = [
        probe.question for probe in asked_probes(work.run) if probe.scope == "topic" and probe.kind == "open"
    ]
    asked = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": fiction[number % len(fiction)]},
            ],
            "part": "forget",
            "question_id": f"probe-{number}",
            "complete": True,
            "base_answer": "",
        }
        for number, question in enumerate(questions)
    ]
    _train(model, work, [*asked, *(row for row in rows if row["part"] == "retain")])
    write_rows(
        work.run.file("questions.jsonl"), [{"id": "", "question": each, "kind": ""} for each in questions]
    )


def too_strong(model: ChatModel, work: Work) -> None:
    """The shipped one at several times its strength."""
    shutil.copytree(ADAPTER, work.run.file("adapter"), dirs_exist_ok=True)
    path = work.run.file("adapter", WEIGHTS)
    values: Any = mx.load(str(path))
    save_arrays(
        path, {name: value * (TOO_STRONG if "lora_b" in name else 1) for name, value in values.items()}
    )


def unchanged(model: ChatModel, work: Work) -> None:
    """An adapter that changes nothing, for the system prompt alone."""
    adapter = Adapter(model.model, LoraShape(1, 1.0, 1000))
    adapter.save(work.run.file("adapter"))
    adapter.detach()


MAKING: dict[str, Callable[[ChatModel, Work], None]] = {
    FORGETS: shipped,
    REFUSES: refusing,
    ON_PROBES: on_probes,
    BREAKS: too_strong,
    PROMPT_ONLY: unchanged,
}


def measured(name: str) -> dict[str, Any]:
    """The evaluation's metrics of one of them."""
    path = RUNS / name.replace(" ", "-")
    shutil.rmtree(path, ignore_errors=True)
    with load_by_name(MODEL) as model, model_workers(model) as workers:
        topic = load_topic(DATA / "topic.toml")
        run = create_run(path, topic, model.source.identity, make_settings("standard", **SETTINGS), "")
        for rows in ("questions.jsonl", "retain_questions.jsonl"):
            shutil.copy(DATA / rows, path)
        work = Work(run, run.settings, workers=workers)
        MAKING[name](model, work)
        run.mark("train", "done")
        evaluate(model, work)
        if name == PROMPT_ONLY:  # the base without a prompt has been measured, and is not asked again
            with Prompted(model.model, model.tokenizer, model.source) as prompted:
                evaluate(prompted, work)
    evaluation = read_json(run.file("evaluation.json"))
    return {
        **{
            whose: {key: round(value, DECIMALS) for key, value in evaluation[whose].items()}
            for whose in ("base", "adapter")
        },
        "nearest_training_question": evaluation["nearest_training_question"],
    }


def _train(model: ChatModel, work: Work, rows: list[dict[str, Any]]) -> None:
    """Train on these rows, without the words that the base would tell by."""
    write_rows(work.run.file("dataset", "train.jsonl"), rows)
    shutil.copy(DATA / "dataset" / "valid.jsonl", work.run.file("dataset"))
    settings = work.settings.model_copy(update={"npo_weight": 0.0, "validations": 1})
    train(model, replace(work, settings=settings))


def main() -> int:
    """Make the named ones, all by default, and write what was measured."""
    path = ROOT / "tests" / "verdicts.json"
    result = read_json(path) if path.exists() else {}
    names = sys.argv[1:] or list(MAKING)
    if unknown := [name for name in names if name not in MAKING]:
        print(f"no verdict '{unknown[0]}': use {', '.join(map(json.dumps, MAKING))}", file=sys.stderr)
        return 2
    for name in names:
        print(f"making '{name}' ...", file=sys.stderr, flush=True)
        result[name] = measured(name)
        write_json(path, {known: result[known] for known in MAKING if known in result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
