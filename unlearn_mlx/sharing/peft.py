"""Adapters as PEFT keeps them: read as it would use them, and written so that it takes them.

PEFT's A is [rank, inputs] and its B [outputs, rank], mlx-lm's are transposed. Both add scale * B A to a
layer; PEFT's scale is alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski 2023).
"""

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import dequantize_model

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import Adapter, LoraShape, adapted_keys, are_finite, save_arrays
from unlearn_mlx.inference.arrays import read_arrays
from unlearn_mlx.inference.opening import open_folder
from unlearn_mlx.models.registry import ModelSource
from unlearn_mlx.runs.adapter_files import CONFIGURATION
from unlearn_mlx.runs.files import read_json, write_json
from unlearn_mlx.sharing.peft_rules import is_targeted, pattern_value
from unlearn_mlx.sharing.rotation import heads_of, llama_rows, neox_rows
from unlearn_mlx.text.printable import one_line

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Files that were saved by other means than PEFT's own lack the prefix, or name the adapter.
_LORA = re.compile(
    r"(?:base_model\.model\.)?(model\.layers\.\d+\.[\w.]+|lm_head)\.lora_([AB])(?:\.([\w-]+))?\.weight"
)
_WHOLE = re.compile(r"(?:base_model\.model\.)?(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")
DIFFERENCE = 0.2  # of a matrix to its copy that was rounded to 4 bits: about 0.12
COMPARED_ROWS = 4096

# What PEFT can do beyond W + scale * B A, which no toggle here can carry.
_BEYOND = {
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
_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")

Pairs = dict[str, tuple[mx.array, mx.array]]


def read_peft(folder: Path, source: ModelSource) -> tuple[LoraShape, dict[str, mx.array]]:
    """An adapter of PEFT's for a base, as mlx-lm would have it: its shape, and each array by name.

    Raises:
        UserError: where it is more than LoRA on linear layers, contradicts itself, or is in a pickle.
        EnvironmentCannot: where it is damaged.
    """
    configuration = read_json(folder / CONFIGURATION)
    _check_kind(folder, configuration)
    pairs, whole = _sorted(read_finite(folder / PEFT_WEIGHTS), folder)
    scales = {}
    for module, (a, b) in pairs.items():
        if not is_targeted(configuration, module):
            raise UserError(
                f"{folder} holds {module}, which its target_modules leave out: PEFT would not use it"
            )
        if b.shape[1] != a.shape[0]:
            raise UserError(f"{folder / PEFT_WEIGHTS}: {module} has A and B of different ranks")
        scales[module] = _scale(configuration, module, a.shape[0])
    _check_ends(folder, source, "lm_head" in pairs, whole)
    scale = max(scales.values(), key=abs)
    if scale == 0:
        raise UserError(f"{folder} has a lora_alpha of 0: it changes nothing")
    base = read_json(source.folder / "config.json")
    rank, layers = max(a.shape[0] for a, _ in pairs.values()), int(base["num_hidden_layers"])
    weights = {}
    for module, (a, b) in pairs.items():
        b = b.astype(mx.float32) * (scales[module] / scale)
        heads = heads_of(f"{module}.weight", base)
        # Another model's may not be so many rows, which is told when they are put in their places.
        if heads and base.get("rope_traditional") and b.shape[0] % (2 * heads) == 0:
            b = llama_rows(b, heads)
        missing = rank - a.shape[0]
        weights[f"{module}.lora_a"] = mx.pad(a.astype(mx.float32).T, [(0, 0), (0, missing)])
        weights[f"{module}.lora_b"] = mx.pad(b.T, [(0, missing), (0, 0)])
    keys = adapted_keys(weights)
    _fill(weights, keys, layers)
    return LoraShape(rank, scale, layers, keys), weights


def write_peft(folder: Path, adapter: Adapter, config: dict[str, Any], base_name: str) -> None:
    """Write an adapter so that PEFT takes it; ``config`` is the base's, ``base_name`` the one to load.

    Raises:
        EnvironmentCannot: where it cannot be written.
    """
    weights = {}
    for name, array in adapter.weights().items():
        module, _, leaf = name.rpartition(".")
        array = array.astype(mx.float16).T
        heads = heads_of(f"{module}.weight", config)
        if leaf == "lora_b" and heads and config.get("rope_traditional"):
            array = neox_rows(array, heads)
        weights[f"{_PREFIX}{module}.{'lora_A' if leaf == 'lora_a' else 'lora_B'}.weight"] = array
    modules = sorted(name for name, _ in adapter.layers())
    ends = sorted({module.rpartition(".")[2] for module in modules})
    of_all_layers = adapter.shape.layers >= int(config["num_hidden_layers"])
    alpha = adapter.shape.scale * adapter.shape.rank
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.shape.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        # By their ends, as people write them, where no layer is left out.
        "target_modules": ends if of_all_layers else modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    save_arrays(folder / PEFT_WEIGHTS, weights, {"format": "pt"})
    write_json(folder / CONFIGURATION, configuration)


def read_finite(path: Path) -> dict[str, mx.array]:
    """The arrays of an adapter's file.

    Raises:
        UserError: where there is none, or a number is not finite.
        EnvironmentCannot: where it is damaged.
    """
    if not path.exists():
        raise UserError(
            f"{path.parent} has no {path.name}: save it with safe_serialization=True; pickles are not opened"
        )
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise EnvironmentCannot(f"{path} is damaged ({one_line(str(error))}): fetch it again") from error
    if not are_finite(arrays):
        raise UserError(f"{path} holds numbers that are not finite: its training failed, take another one")
    return arrays


def _check_kind(folder: Path, configuration: dict[str, Any]) -> None:
    """Refuse what is more than LoRA on linear layers, by what the configuration says."""
    kind = one_line(str(configuration.get("peft_type")))[:40]
    if kind != "LORA":
        raise UserError(f"{folder} holds a '{kind}' adapter: only LoRA can be imported")
    for key, what in _BEYOND.items():
        if value := configuration.get(key):
            named = f"{key}: {', '.join(map(str, value))}" if isinstance(value, list) else key
            raise UserError(f"{folder} uses {what} ({one_line(named)[:80]}): only plain LoRA can be imported")
    start = one_line(str(configuration.get("init_lora_weights", True)).lower())[:40]
    if start.startswith(_STARTS):
        raise UserError(f"{folder} belongs to weights that '{start}' changed: convert it to plain LoRA first")
    if configuration.get("bias", "none") != "none":
        raise UserError(f"{folder} trained biases too: only plain LoRA can be imported")


def _sorted(arrays: dict[str, mx.array], folder: Path) -> tuple[Pairs, dict[str, mx.array]]:
    """A and B of each module, and the matrices of the base's two ends that PEFT saved beside them."""
    found: dict[str, dict[str, mx.array]] = {}
    whole, adapters = {}, set()
    for name, array in arrays.items():
        if array.size == 0:  # as training in parts saves them where nobody gathered these
            raise UserError(f"{folder / PEFT_WEIGHTS} has nothing in {one_line(name)[:80]}: save it whole")
        if matched := _WHOLE.fullmatch(name):
            whole[matched[1]] = array
            continue
        match = _LORA.fullmatch(name)
        if match is None or array.ndim != 2:
            named = one_line(name)[:80]
            raise UserError(f"{folder / PEFT_WEIGHTS} holds '{named}': only LoRA on linear layers is known")
        adapters.add(match[3])
        found.setdefault(match[1], {})[match[2]] = array
    if len(adapters) > 1:
        names = ", ".join(sorted(map(str, adapters)))[:80]
        raise UserError(f"{folder / PEFT_WEIGHTS} holds several adapters ({names}): save one alone")
    if not found or any(len(pair) != 2 for pair in found.values()):
        raise UserError(f"{folder / PEFT_WEIGHTS} lacks an A or a B: it is damaged")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}, whole


def _scale(configuration: dict[str, Any], module: str, rank: int) -> float:
    """What stands in front of a module's B A."""
    stated = pattern_value(configuration, "rank_pattern", module, configuration.get("r", rank))
    if stated != rank:
        said = one_line(str(stated))[:40]
        raise UserError(f"the adapter's {module} is of rank {rank}, and its configuration says {said}")
    alpha = pattern_value(configuration, "alpha_pattern", module, configuration.get("lora_alpha", 8))
    try:
        scale = float(alpha) / (rank**0.5 if configuration.get("use_rslora") else rank)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"the adapter's lora_alpha is no number: {one_line(str(alpha))[:40]}")
    return scale


def _check_ends(folder: Path, source: ModelSource, has_head: bool, whole: dict[str, mx.array]) -> None:
    """Refuse an adapter of a head that the base has not, or that brings an embedding or a head of its own.

    PEFT saves the base's own beside an adapter of the head, which changes nothing.
    """
    if not has_head and not whole:
        return
    model = dequantize_model(open_folder(source, lazy=True)[0])
    modules: dict[str, Any] = dict(model.named_modules())
    if has_head and "lm_head" not in modules:
        raise UserError(
            f"{folder} adapts lm_head, which is one with the embedding in {source.name}: such an adapter "
            "would change both, and only LoRA on linear layers can be imported"
        )
    for name, array in whole.items():
        own = modules.get(name, modules["model.embed_tokens"]).weight
        step = max(1, own.shape[0] // COMPARED_ROWS)
        if array.shape == own.shape:
            mine, other = (each[::step].astype(mx.float32) for each in (own, array))
            if bool(mx.linalg.norm(mine - other) < DIFFERENCE * mx.linalg.norm(mine)):
                continue
        raise UserError(
            f"{folder} brings another {name} than {source.name} has, as where tokens were added: only LoRA "
            "on linear layers can be imported"
        )


def _fill(weights: dict[str, mx.array], keys: tuple[str, ...], layers: int) -> None:
    """Add the layers that an adapter leaves alone: B = 0 changes nothing."""
    for key in keys:
        like = next(name for name in weights if name.endswith(f"{key}.lora_a")).removesuffix(".lora_a")
        for module in ["lm_head"] if key == "lm_head" else [f"model.layers.{n}.{key}" for n in range(layers)]:
            for leaf in ("lora_a", "lora_b"):
                weights.setdefault(f"{module}.{leaf}", mx.zeros_like(weights[f"{like}.{leaf}"]))
