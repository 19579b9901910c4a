"""A finished run in the forms that other programs take: mlx-lm, transformers, llama.cpp."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import save_config, save_model

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import CONFIGURATION, WEIGHTS, load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.fusing import fused_model
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import ModelSource, resolve_model
from unlearn_mlx.runs.files import disk_error, write_atomically, write_json
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.measure import Leak, measure_leak
from unlearn_mlx.sharing.model_card import model_card
from unlearn_mlx.sharing.rotation import heads_of, neox_rows

FORMATS = ("adapter", "mlx", "hf", "gguf")
HF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def export(run: Run, form: str, bits: int | None, out: Path | None = None) -> tuple[Path, Leak | None]:
    """Write a run's result in a form, load it again from there, and measure its leak.

    ``bits`` is 4, 8 or None (floats), for "mlx" and "gguf"; "hf" is always in floats and "adapter" takes
    the base as it is.

    Returns the folder, and what was measured (None where the run was never evaluated).

    Raises:
        UserError: where there is no adapter, the folder is in use, or the form cannot carry the model.
        EnvironmentCannot: where the disk is full or the model is missing.
    """
    if not run.has_adapter:
        raise UserError(f"{run.path} has no adapter yet: run 'unlearn train {run.path}' first")
    if form == "hf" and bits is not None:
        raise UserError("--format hf is written in floats: leave out --bits, or use mlx or gguf")
    folder = out or run.file("export", form if form in ("adapter", "hf") else f"{form}-{bits or 16}bit")
    source = resolve_model(run.model_name)
    if source.weights_sha256 != run.manifest.model.sha256:
        raise UserError(f"{run.path} was made with other weights of {source.name}: fetch those again")
    with _building(folder) as building:
        _WRITERS[form](building, run, source, bits)
        with _loaded_again(building, form, run, source) as exported:
            leak = measure_leak(exported, run)
        facts: dict[str, Any] = {"format": form, "bits": bits, "leak": asdict(leak) if leak else None}
        write_json(building / "export.json", facts)
        write_atomically(building / "README.md", model_card(run, form, leak))
    return folder, leak


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place once it is whole."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: delete it, or use '--out' for another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".building-{folder.name}-"))
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield building
        building.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_adapter(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    for name in (WEIGHTS, CONFIGURATION):
        shutil.copyfile(run.file("adapter", name), folder / name)


def _write_mlx(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, tokenizer, config = fused_model(source, run.file("adapter"), bits)
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    _copy_generation_settings(source, folder)


def _write_hf(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, tokenizer, config = fused_model(source, run.file("adapter"), None)
    if config["model_type"] not in HF_ARCHITECTURES:
        known = ", ".join(HF_ARCHITECTURES)
        raise UserError(
            f"no transformers folder for '{config['model_type']}' here ({known}): use --format mlx"
        )
    if config.pop("rope_traditional", False):
        parameters: Any = tree_flatten(model.parameters())
        rotated = [(name, array, heads_of(name, config)) for name, array in parameters]
        model.load_weights([(n, neox_rows(a, h)) for n, a, h in rotated if h], strict=False)
    model.set_dtype(mx.float16)
    config |= {"architectures": [HF_ARCHITECTURES[config["model_type"]]], "torch_dtype": "float16"}
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    _copy_generation_settings(source, folder)


def _write_gguf(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    from unlearn_mlx.sharing.gguf import write_gguf

    model, tokenizer, config = fused_model(source, run.file("adapter"), None)
    name = f"{source.name} without {run.topic.name}"
    write_gguf(folder / "model.gguf", model, tokenizer, config, bits, name)


def _copy_generation_settings(source: ModelSource, folder: Path) -> None:
    settings = source.folder / "generation_config.json"
    if settings.exists():
        shutil.copyfile(settings, folder / settings.name)


_WRITERS = {"adapter": _write_adapter, "mlx": _write_mlx, "hf": _write_hf, "gguf": _write_gguf}


def _loaded_again(folder: Path, form: str, run: Run, source: ModelSource) -> ChatModel:
    """The model that lies in an exported folder, as a user would have it."""
    if form in ("mlx", "hf"):
        return load_model(resolve_model(str(folder)))
    if form == "adapter":
        model = load_model(source)
        load_adapter(model.model, folder)
        return model
    from unlearn_mlx.sharing.gguf import read_gguf_weights

    shell, tokenizer, config = fused_model(source, run.file("adapter"), None)
    weights = read_gguf_weights(folder / "model.gguf", config)
    if current_device().is_gpu:
        weights = [(name, array.astype(mx.float16)) for name, array in weights]
    # Every weight is the file's: strict loading refuses a file that lacks one.
    shell.load_weights(weights)
    return ChatModel(shell, tokenizer, source)
