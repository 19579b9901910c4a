"""Adapters that others made, with mlx-lm or PEFT, become runs: chat, evaluation and audit open them.

Only safetensors are read: PyTorch's own files can run code when they are opened.
"""

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import (
    CONFIGURATION,
    WEIGHTS,
    LoraShape,
    load_adapter,
    save_arrays,
)
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.hub_errors import hub_reason, hub_words, is_hub_error
from unlearn_mlx.models.registry import HUB_ID, ModelSource, named_model, resolve_model
from unlearn_mlx.runs.files import read_json, write_json, write_rows
from unlearn_mlx.runs.run import Run, create_run
from unlearn_mlx.sharing.rotation import heads_of, llama_rows
from unlearn_mlx.synthetic_data.stages import general_subjects
from unlearn_mlx.topics import Topic

PEFT_WEIGHTS = "adapter_model.safetensors"
RETAIN_ROWS = 12  # a part
_PEFT_NAME = re.compile(r"base_model\.model\.(model\.layers\.\d+\.[\w.]+|lm_head)\.lora_([AB])\.weight")

# What PEFT can do beyond W + scale * B A, which no toggle here can carry.
_PEFT_BEYOND = {
    "use_dora": "DoRA",
    "modules_to_save": "whole layers beside LoRA",
    "fan_in_fan_out": "transposed layers",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "single parameters",
    "lora_bias": "biases",
    "layer_replication": "layers that are there twice",
    "alora_invocation_tokens": "an adapter that some tokens switch on",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "several adapters at once",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# These change the base's weights first, unless PEFT converted the adapter when it was saved.
_PEFT_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def import_adapter(where: str, topic: Topic, model_name: str | None, path: Path) -> Run:
    """Make a run of an adapter in a folder, or on the hub as OWNER/NAME.

    ``model_name`` is the base; None takes the one that the adapter names, where that is a hub id.

    Raises:
        UserError: for an adapter of another kind, another model, or in a pickle.
        EnvironmentCannot: where it cannot be fetched.
    """
    folder = _fetched(where)
    configuration = read_json(folder / CONFIGURATION)
    if not isinstance(configuration, dict):
        raise UserError(f"{folder / CONFIGURATION} is no adapter's configuration")
    source = resolve_model(model_name or _named_base(configuration))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is in use: choose another directory with '--out'")
    with tempfile.TemporaryDirectory() as temporary:
        converted = Path(temporary)
        if "peft_type" in configuration:
            _from_peft(folder, configuration, source, converted)
        else:
            _from_mlx_lm(folder, configuration, converted)
        with load_model(source) as model:
            adapter = load_adapter(model.model, converted)
            adapter.detach()
            run = _as_run(path, topic, source, adapter.shape, mx.load(str(converted / WEIGHTS)), where)
            _write_retain_rows(run, model)
    for stage in ("questions", "answers", "train"):
        run.mark(stage, "done")
    return run


def _as_run(path: Path, topic: Topic, source: ModelSource, shape: LoraShape, weights: Any, where: str) -> Run:
    model = {"name": source.name, "revision": source.revision, "sha256": source.weights_sha256}
    settings = make_settings(rank=shape.rank, scale=shape.scale, layers=max(1, shape.layers))
    device = current_device()
    run = create_run(path, topic, model, settings, f"{device.backend}: {device.name}")
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
    from huggingface_hub import snapshot_download

    try:
        # By their names: whatever else a repository holds stays there.
        names = [CONFIGURATION, WEIGHTS, PEFT_WEIGHTS]
        fetched = Path(snapshot_download(where, allow_patterns=names))
    except Exception as error:
        if not is_hub_error(error):
            raise
        own = {
            403: f"you may not read it: ask for it on {where}'s page, then 'hf auth login'",
            404: "the hub has no such repository, or you may not see it: check the name, or 'hf auth login'",
        }
        reason = hub_reason(error, own) or hub_words(error)
        raise EnvironmentCannot(f"cannot fetch {where}: {reason}") from None
    if not (fetched / CONFIGURATION).exists():
        raise UserError(f"{where} has no {CONFIGURATION}: it is no adapter of mlx-lm or PEFT")
    return fetched


def _named_base(configuration: dict[str, Any]) -> str:
    name = configuration.get("base_model_name_or_path") or configuration.get("model")
    if isinstance(name, str) and (known := named_model(name)):
        return known.name
    # Only a hub id: a path would be one of the machine that it was trained on.
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return name
    raise UserError("the adapter does not say which model it belongs to: name it with '--model'")


def _from_mlx_lm(folder: Path, configuration: dict[str, Any], into: Path) -> None:
    if configuration.get("fine_tune_type", "lora") != "lora":
        raise UserError(
            f"{folder} holds a '{configuration['fine_tune_type']}' adapter: only LoRA can be toggled"
        )
    save_arrays(into / WEIGHTS, _arrays(folder / WEIGHTS))
    write_json(into / CONFIGURATION, configuration)


def _from_peft(folder: Path, configuration: dict[str, Any], source: ModelSource, into: Path) -> None:
    """W + (alpha / rank) B A: PEFT's A is [rank, in] and its B [out, rank]; mlx-lm's are transposed."""
    if configuration["peft_type"] != "LORA":
        raise UserError(f"{folder} holds a '{configuration['peft_type']}' adapter: only LoRA can be imported")
    for key, what in _PEFT_BEYOND.items():
        if configuration.get(key):
            raise UserError(f"{folder} uses {what} ({key}): only plain LoRA can be imported")
    start = str(configuration.get("init_lora_weights", True)).lower()
    if start.startswith(_PEFT_STARTS):
        raise UserError(f"{folder} belongs to weights that '{start}' changed: convert it to plain LoRA first")
    if configuration.get("bias", "none") != "none":
        raise UserError(f"{folder} trained biases too: only plain LoRA can be imported")
    if not (folder / PEFT_WEIGHTS).exists():
        raise UserError(
            f"{folder} has no {PEFT_WEIGHTS}: save it with safe_serialization=True; pickles are not opened"
        )
    base = read_json(source.folder / "config.json")
    pairs = _pairs(_arrays(folder / PEFT_WEIGHTS), folder)
    rank = max(a.shape[0] for a, _ in pairs.values())
    scales = {module: _peft_scale(configuration, module, a.shape[0]) for module, (a, _) in pairs.items()}
    scale = max(scales.values(), key=abs)
    if scale == 0:
        raise UserError(f"{folder} has a lora_alpha of 0: it changes nothing")
    weights = {}
    for module, (a, b) in pairs.items():
        if b.shape[1] != a.shape[0]:
            raise UserError(f"{folder / PEFT_WEIGHTS}: {module} has A and B of different ranks")
        b = b.astype(mx.float32) * (scales[module] / scale)
        heads = heads_of(f"{module}.weight", base)
        if heads and base.get("rope_traditional"):
            b = llama_rows(b, heads)
        missing = rank - a.shape[0]
        weights[f"{module}.lora_a"] = mx.pad(a.astype(mx.float32).T, [(0, 0), (0, missing)])
        weights[f"{module}.lora_b"] = mx.pad(b.T, [(0, missing), (0, 0)])
    keys = sorted({re.sub(r"^model\.layers\.\d+\.", "", module) for module in pairs})
    layers = int(base["num_hidden_layers"])
    for number in range(layers):
        for key in keys:
            module = key if key == "lm_head" else f"model.layers.{number}.{key}"
            if f"{module}.lora_a" not in weights:  # B = 0 changes nothing
                like = next(name for name in pairs if name.endswith(key))
                for leaf in ("lora_a", "lora_b"):
                    weights[f"{module}.{leaf}"] = mx.zeros_like(weights[f"{like}.{leaf}"])
    save_arrays(into / WEIGHTS, weights)
    write_json(into / CONFIGURATION, LoraShape(rank, scale, layers, tuple(keys)).configuration())


def _pairs(arrays: dict[str, mx.array], folder: Path) -> dict[str, tuple[mx.array, mx.array]]:
    found: dict[str, dict[str, mx.array]] = {}
    for name, array in arrays.items():
        match = _PEFT_NAME.fullmatch(name)
        if match is None or array.ndim != 2:
            raise UserError(
                f"{folder / PEFT_WEIGHTS} holds '{name[:80]}': only LoRA on linear layers is known"
            )
        found.setdefault(match[1], {})[match[2]] = array
    if not found or any(len(pair) != 2 for pair in found.values()):
        raise UserError(f"{folder / PEFT_WEIGHTS} lacks an A or a B: it is damaged")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _peft_scale(configuration: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski 2023)."""
    alpha = configuration.get("lora_alpha", rank)
    patterns = configuration.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise UserError("the adapter's alpha_pattern has more than names of layers: not known here")
    for name, value in patterns.items():
        if module == name or module.endswith(f".{name}"):
            alpha = value
            break
    try:
        scale = float(alpha) / (rank**0.5 if configuration.get("use_rslora") else rank)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"the adapter's lora_alpha is no number: {str(alpha)[:40]}")
    return scale


def _arrays(path: Path) -> dict[str, mx.array]:
    if not path.exists():
        raise UserError(f"{path.parent} has no {path.name}: only safetensors are opened, never pickles")
    try:
        arrays = mx.load(str(path), format="safetensors")
        assert isinstance(arrays, dict)
        mx.eval(arrays)
    except (RuntimeError, OSError, ValueError) as error:
        raise EnvironmentCannot(f"{path} is damaged: fetch it again") from error
    return arrays
