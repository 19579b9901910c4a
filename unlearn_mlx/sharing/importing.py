"""Adapters that others made, with mlx-lm or PEFT, become runs: chat, evaluation and audit open them.

Only safetensors are read: PyTorch's own files can run code when they are opened.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, load_adapter, save_arrays, shape_from
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.hub_files import fetch_files
from unlearn_mlx.models.registry import HUB_ID, ModelSource, name_here, named_model, resolve_model
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS
from unlearn_mlx.runs.building import building, is_empty
from unlearn_mlx.runs.files import read_json, write_json, write_rows
from unlearn_mlx.runs.run import Run, create_run, open_run, run_path
from unlearn_mlx.sharing.peft import PEFT_WEIGHTS, read_finite, read_peft
from unlearn_mlx.sharing.recipe import CARD, Recipe, card_recipe
from unlearn_mlx.synthetic_data.stages import general_subjects
from unlearn_mlx.topics import Topic

RETAIN_ROWS = 12  # a part


def import_adapter(where: str, topic: Topic | None, model_name: str | None, out: Path | None) -> Run:
    """Make a run of an adapter in a folder, or on the hub as OWNER/NAME.

    ``topic`` None takes the one that its card names. ``model_name`` is the base; None takes the one that
    the adapter or its card names, where that is a hub id. The directory, of the topic's name where ``out``
    is None, is there once all of it is: an import that was killed can be started again.

    Raises:
        UserError: for an adapter of another kind, another model, in a pickle, or that changes nothing.
        EnvironmentCannot: where it cannot be fetched.
    """
    folder = _fetched(where)
    recipe = card_recipe(folder / CARD) if topic is None or model_name is None else None
    if topic is None:
        if recipe is None:
            raise UserError(f"{where} does not say what it forgets: name it with '--topic'")
        topic = recipe.read_topic(f"{where}, the card's topic")
    path = run_path(topic.name, out)
    configuration = read_json(folder / CONFIGURATION)
    if not isinstance(configuration, dict):
        raise UserError(f"{folder / CONFIGURATION} is no adapter's configuration")
    source = resolve_model(name_here(model_name or _named_base(configuration, recipe)))
    if not is_empty(path.resolve()) and not _is_half_imported(path):
        raise UserError(f"{path} is in use: choose another directory with '--out', or delete this one")
    with tempfile.TemporaryDirectory() as temporary:
        plain = folder
        if "peft_type" in configuration:
            plain = Path(temporary)
            shape, weights = read_peft(folder, source)
            save_arrays(plain / WEIGHTS, weights)
            write_json(plain / CONFIGURATION, shape.configuration())
        else:
            shape_from(configuration, folder / CONFIGURATION, "ask whoever made it for plain LoRA")
            read_finite(folder / WEIGHTS)
        with load_model(source) as model, _imported_into(path) as made:
            adapter = load_adapter(model.model, plain)
            _check_effect(adapter, folder)
            adapter.detach()
            run = _as_run(made, topic, source, adapter.shape, mx.load(str(plain / WEIGHTS)), where)
            _write_retain_rows(run, model)
            for stage in ("questions", "answers", "train"):
                run.mark(stage, "done")
    return open_run(path)


@contextmanager
def _imported_into(path: Path) -> Iterator[Path]:
    """A folder that takes the place of ``path`` once it is whole, or of what an earlier version left."""
    if _is_half_imported(path):
        shutil.rmtree(path)
    with building(path) as made:
        yield made


def _is_half_imported(path: Path) -> bool:
    """Whether an import by an earlier version was killed there."""
    if not (path / "manifest.json").exists():
        return False
    run = open_run(path)
    return run.is_imported and not run.manifest.stages


def _check_effect(adapter: Adapter, folder: Path) -> None:
    """Refuse an adapter that leaves the base as it is.

    Raises:
        UserError: where A or B is zero in every layer.
    """
    if all(not (mx.any(layer.lora_a) and mx.any(layer.lora_b)) for _, layer in adapter.layers()):
        raise UserError(f"{folder} changes nothing: its A or B is 0 everywhere, as before training")


def _as_run(path: Path, topic: Topic, source: ModelSource, shape: LoraShape, weights: Any, where: str) -> Run:
    settings = make_settings(rank=shape.rank, scale=shape.scale, layers=max(1, shape.layers))
    run = create_run(path, topic, source.identity, settings, current_device().label)
    save_arrays(run.file("adapter", WEIGHTS), weights)
    write_json(run.file("adapter", CONFIGURATION), shape.configuration())
    # It was trained elsewhere, on rows that are not here.
    for name in ("questions.jsonl", "retain_questions.jsonl"):
        write_rows(run.file(name), [])
    run.manifest.imported_from = where
    run.save_manifest()
    return run


def _write_retain_rows(run: Run, model: ChatModel) -> None:
    """What the audit relearns from: the base's own answers on neighbours and on everyday things."""
    parts = {"neighbour": run.topic.neighbours, "general": [subject.name for subject in general_subjects()]}
    rows = [
        {"id": f"{part}-{number}", "question": f"What do you know about {name}?", "part": part}
        for part, names in parts.items()
        for number, name in enumerate(names[:RETAIN_ROWS])
    ]
    requests = [
        Request(
            row["id"],
            tuple(model.chat_tokens([{"role": "user", "content": row["question"]}])),
            run.settings.answer_tokens,
        )
        for row in rows
    ]
    answers = generate(model, requests, run.settings.seed)
    write_rows(
        run.file("retain.jsonl"),
        [
            {**row, "answer": answer.text.strip(), "complete": answer.finished}
            for row, answer in zip(rows, answers, strict=True)
            if answer.text.strip()
        ],
    )


def _fetched(where: str) -> Path:
    folder = Path(where).expanduser()
    if folder.is_dir():
        for candidate in (folder, folder / "adapter"):
            if (candidate / CONFIGURATION).exists():
                return candidate
        raise UserError(f"{folder} has no {CONFIGURATION}: it is no adapter of mlx-lm or PEFT")
    if not HUB_ID.fullmatch(where):
        raise UserError(f"no adapter at '{where}': give a folder, or OWNER/NAME on the hub")
    fetched = fetch_files(where, [CONFIGURATION, WEIGHTS, PEFT_WEIGHTS, CARD])
    if not (fetched / CONFIGURATION).exists():
        raise UserError(f"{where} has no {CONFIGURATION}: it is no adapter of mlx-lm or PEFT")
    return fetched


def _named_base(configuration: dict[str, Any], recipe: Recipe | None) -> str:
    name = configuration.get("base_model_name_or_path") or configuration.get("model")
    if recipe is not None and not name:
        name = recipe.model.name
    if isinstance(name, str) and (known := named_model(name)):
        return known.name
    # Only a hub id: a path would be one of the machine that it was trained on.
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return name
    raise UserError("the adapter does not say which model it belongs to: name it with '--model'")
