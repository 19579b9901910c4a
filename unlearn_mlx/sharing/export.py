"""A finished run in the forms that other programs take: mlx-lm, transformers, PEFT, llama.cpp, Ollama."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import save_config, save_model

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.holders import room_now
from unlearn_mlx.compute.memory import GIGABYTE, wired
from unlearn_mlx.compute.model_shape import shape_of
from unlearn_mlx.compute.planner import answering_bytes
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import evaluation_of
from unlearn_mlx.inference.adapters import attached, load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.fusing import GROUP_SIZE, fused, fused_model
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.inference.opening import open_folder
from unlearn_mlx.models.registry import ModelSource, named_model, resolve_model
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES
from unlearn_mlx.runs.building import building
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.files import read_json, write_atomically, write_json
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.forms import FORMS, GGUF, GGUF_LORA, MODELFILE
from unlearn_mlx.sharing.gguf import architecture_of, read_gguf_weights, write_gguf
from unlearn_mlx.sharing.gguf_lora import read_gguf_lora, write_gguf_lora
from unlearn_mlx.sharing.measure import Leak, measure_leak
from unlearn_mlx.sharing.model_card import model_card, public_name
from unlearn_mlx.sharing.ollama import modelfile
from unlearn_mlx.sharing.peft import read_peft, write_peft
from unlearn_mlx.sharing.rotation import heads_of, neox_rows
from unlearn_mlx.text.printable import one_line

# What decides the result, and has a default.
_SAID = (
    *("rope_theta", "max_position_embeddings", "tie_word_embeddings"),
    *("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
)
HF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def export(run: Run, form: str, bits: int | None, out: Path | None = None) -> tuple[Path, Leak | None]:
    """Write a run's result in one of ``FORMS``, load it again from there, and measure its leak.

    ``bits`` is 4, 8 or None (floats), which some forms are always in.

    Returns the folder, and what was measured (None where the run was never evaluated, or the export is too
    large for this machine: ``export.json`` says why).

    Raises:
        UserError: where there is no adapter, the folder is in use, or the form cannot carry the model.
        EnvironmentCannot: where the disk is full or the model is missing.
    """
    run.finished_adapter()
    if bits is not None and not FORMS[form].is_rounded:
        raise UserError(f"--format {form} is written in floats: leave out --bits, or use mlx or gguf")
    folder = out or run.file("export", f"{form}-{bits or 16}bit" if FORMS[form].is_rounded else form)
    source = resolve_model(run.model_name)
    if source.weights_sha256 != run.manifest.model.sha256:
        raise UserError(f"{run.path} was made with other weights of {source.name}: fetch those again")
    _check_architecture(form, read_json(source.folder / "config.json"))
    with building(folder) as made:
        _WRITERS[form](made, run, source, bits)
        leak, note = _measured(made, folder, form, bits, run, source)
        facts: dict[str, Any] = {
            "format": form,
            "bits": bits,
            "leak": asdict(leak) if leak else None,
            "note": note,
        }
        write_json(made / "export.json", facts)
        write_atomically(made / "README.md", model_card(run, form, leak))
    return folder, leak


def _check_architecture(form: str, config: dict[str, Any]) -> None:
    """Refuse a form that has no place for a model, before anything is opened."""
    if FORMS[form].is_gguf:
        architecture_of(config)
    kind = str(config.get("model_type"))
    if form in ("hf", "peft") and kind not in HF_ARCHITECTURES:
        known, named = ", ".join(HF_ARCHITECTURES), one_line(kind)[:40]
        instead = "mlx" if form == "hf" else "adapter"
        raise UserError(f"--format {form} is not known for '{named}' here ({known}): use --format {instead}")


def _write_adapter(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    for name in ADAPTER_FILES:
        shutil.copyfile(run.file("adapter", name), folder / name)


def _write_mlx(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, tokenizer, config = fused_model(source, run.file("adapter"), bits)
    save_model(folder, model, donate_model=True)  # a shard at a time
    save_config(config, config_path=folder / "config.json")
    _write_tokenizer(folder, tokenizer)
    _copy_generation_settings(source, folder)


def _write_peft(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, _, config = open_folder(source, lazy=True)
    named = named_model(run.model_name)
    base_name = named.origin if named else public_name(run.model_name)
    write_peft(folder, load_adapter(model, run.file("adapter")), config, base_name)


def _write_gguf_lora(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, _, config = open_folder(source, lazy=True)
    name = f"{run.topic.name}, forgotten by {public_name(run.model_name)}"
    write_gguf_lora(folder / GGUF_LORA, load_adapter(model, run.file("adapter")), config, name)


def _write_hf(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, tokenizer, config = fused_model(source, run.file("adapter"), None)
    if config.pop("rope_traditional", False):
        parameters: Any = tree_flatten(model.parameters())
        rotated = [(name, array, heads_of(name, config)) for name, array in parameters]
        model.load_weights([(n, neox_rows(a, h)) for n, a, h in rotated if h], strict=False)
    model.set_dtype(mx.float16)
    config |= {"architectures": [HF_ARCHITECTURES[config["model_type"]]], "torch_dtype": "float16"}
    # mlx-lm and transformers have defaults of their own for what a configuration leaves out.
    config |= {key: value for key in _SAID if (value := getattr(model.args, key, None)) is not None}
    save_model(folder, model, donate_model=True)
    save_config(config, config_path=folder / "config.json")
    _write_tokenizer(folder, tokenizer)
    _copy_generation_settings(source, folder)


def _write_gguf(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    model, tokenizer, config = fused_model(source, run.file("adapter"), None)
    name = f"{public_name(source.name)} without {run.topic.name}"
    write_gguf(folder / GGUF, model, tokenizer, config, bits, name)


def _write_ollama(folder: Path, run: Run, source: ModelSource, bits: int | None) -> None:
    # A tokenizer of its own, since it is told the date.
    _, tokenizer, _ = open_folder(source, lazy=True)
    write_atomically(folder / MODELFILE, modelfile(tokenizer, source.name, GGUF))
    _write_gguf(folder, run, source, bits)


def _write_tokenizer(folder: Path, tokenizer: TokenizerWrapper) -> None:
    """Write a tokenizer so that transformers 4 takes it too, which knows neither 5's class nor its fields."""
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    for key in ("backend", "is_local", "local_files_only", "tool_parser_type"):
        settings.pop(key, None)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, settings)


def _copy_generation_settings(source: ModelSource, folder: Path) -> None:
    settings = source.folder / "generation_config.json"
    if settings.exists():
        shutil.copyfile(settings, folder / settings.name)


_WRITERS = {
    "adapter": _write_adapter,
    "peft": _write_peft,
    "gguf-lora": _write_gguf_lora,
    "mlx": _write_mlx,
    "hf": _write_hf,
    "gguf": _write_gguf,
    "ollama": _write_ollama,
}


def _measured(
    folder: Path, place: Path, form: str, bits: int | None, run: Run, source: ModelSource
) -> tuple[Leak | None, str]:
    """What leaks of an exported folder, and how it was measured, or why not; it will lie in ``place``.

    Where it can be, it is loaded also with nothing to measure: what cannot be loaded is no export.
    """
    needed, room = _bytes_to_measure(folder, form, source), room_now()
    is_evaluated, command = evaluation_of(run.path) is not None, run.stage_command("evaluate")
    unmeasured = f"not measured: run '{command}' first, then delete {shell_word(place)} and export again"
    if needed <= room:
        with wired(), _loaded_again(folder, form, run, source) as exported:
            leak = measure_leak(exported, run)
        return leak, "measured as it was written" if is_evaluated else unmeasured
    if not is_evaluated:
        return None, unmeasured
    short = f"{needed / GIGABYTE:.1f} GB are needed to load it and {max(0, room) / GIGABYTE:.1f} GB are free"
    if FORMS[form].is_gguf or not current_device().is_gpu:
        return None, f"not measured: {short}"
    group_size = int(read_json(folder / "config.json").get("quantization", {}).get("group_size", GROUP_SIZE))
    with wired(), load_model(source) as model, fused(model, run.file("adapter"), bits, group_size):
        return measure_leak(model, run), f"measured by the same rounding of one layer at a time: {short}"


def _bytes_to_measure(folder: Path, form: str, source: ModelSource) -> int:
    """What an exported model takes while it answers; 0 where its sizes are not known."""
    device = current_device()
    try:
        shape = shape_of(folder if form in ("mlx", "hf") else source.folder)
    except UserError:  # its configuration says its sizes in other words
        return 0
    if form in ("gguf", "ollama") and device.is_gpu:
        shape = replace(shape, file_bytes=shape.parameters * 2)  # it is read in half precision
    return answering_bytes(shape, device)


def _loaded_again(folder: Path, form: str, run: Run, source: ModelSource) -> ChatModel:
    """The model that lies in an exported folder, as a user would have it."""
    if form in ("mlx", "hf"):
        return load_model(resolve_model(str(folder)))
    if FORMS[form].is_adapter:
        model = load_model(source)
        if form == "adapter":
            load_adapter(model.model, run.file("adapter"))  # the same bytes, under a path that will stay
        else:
            config = read_json(source.folder / "config.json")
            written = folder / GGUF_LORA
            found = read_peft(folder, source) if form == "peft" else read_gguf_lora(written, config)
            attached(model.model, *found, folder)
        return model
    shell, tokenizer, config = fused_model(source, run.file("adapter"), None)
    dtype = mx.float16 if current_device().is_gpu else mx.float32
    # Every weight is the file's: strict loading refuses a file that lacks one.
    shell.load_weights(list(read_gguf_weights(folder / GGUF, config, dtype)))
    return ChatModel(shell, tokenizer, source)
