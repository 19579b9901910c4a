"""LoRA adapters in mlx-lm's format: attach, toggle, vary their strength, load and save."""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.arrays import read_arrays
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS
from unlearn_mlx.runs.files import building_prefix, read_json, write_failure, write_json
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.text.printable import one_line

LONGEST_NAME = 80  # characters of an array's name in a complaint
WIDEST = 4096  # rank of an adapter that is loaded: a file of others' could ask for all memory
ALL_LAYERS = 1000  # what "all of them" is written as: no model has so many


@dataclass(frozen=True)
class LoraShape:
    """Low-rank adapters (Hu et al. 2021): y = W x + scale * B A x on every linear layer."""

    rank: int
    scale: float
    layers: int  # counted from the last; all if it is at least the model's number
    keys: tuple[str, ...] | None = None  # which linear layers, by their name inside a block; None: all

    def configuration(self) -> dict[str, Any]:
        """What mlx-lm reads from adapter_config.json."""
        parameters: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": 0.0}
        if self.keys is not None:
            parameters["keys"] = list(self.keys)
        return {"fine_tune_type": "lora", "num_layers": self.layers, "lora_parameters": parameters}


class Adapter:
    """An adapter attached to a model, on or off.

    Off means that the plain layers stand in the model again: bit-identical to the base and free.
    """

    def __init__(self, model: nn.Module, shape: LoraShape) -> None:
        """Attach a fresh adapter (B = 0, so that it changes nothing yet) to ``model``."""
        self.model = model
        self.shape = shape
        model.freeze()
        linear_to_lora_layers(model, shape.layers, shape.configuration()["lora_parameters"])
        self._lora_modules = [(name, module) for name, module in model.named_modules() if _is_lora(module)]
        self._plain_modules = [(name, module.linear) for name, module in self._lora_modules]
        self.is_on = True

    def switch(self, on: bool) -> None:
        """Put the adapter's layers, or the plain ones, in their places."""
        if on != self.is_on:
            self.model.update_modules(tree_unflatten(self._lora_modules if on else self._plain_modules))
            self.is_on = on

    def set_strength(self, strength: float) -> None:
        """Scale the adapter's effect: 1 as trained, 0 none."""
        for _, module in self._lora_modules:
            module.scale = self.shape.scale * strength

    def layers(self) -> list[tuple[str, Any]]:
        """Name and module of each adapted layer."""
        return list(self._lora_modules)

    def given_away(self) -> Iterator[tuple[str, Any]]:
        """Name and module of each adapted layer, which nobody else holds then: the adapter ends with it."""
        self._plain_modules.clear()
        while self._lora_modules:
            yield self._lora_modules.pop()

    def weights(self) -> dict[str, mx.array]:
        """Name and value of each trained array."""
        return {
            f"{name}.{leaf}": module[leaf]
            for name, module in self._lora_modules
            for leaf in ("lora_a", "lora_b")
        }

    def set_weights(self, weights: dict[str, mx.array]) -> None:
        """Replace the trained arrays.

        Raises:
            UserError: where names or shapes are another adapter's, with the first that is.
        """
        if difference := _difference(self.weights(), weights):
            raise UserError(f"the adapter was made for another model or other LoRA settings ({difference})")
        for name, module in self._lora_modules:
            for leaf in ("lora_a", "lora_b"):
                module[leaf] = weights[f"{name}.{leaf}"].astype(module[leaf].dtype)
        # Its own arrays alone: the layers below may not have been read from their files yet.
        mx.eval(self.weights())

    def save(self, folder: Path) -> None:
        """Write the adapter so that ``mlx_lm.generate --adapter-path`` takes it. Weights are float16."""
        weights = {name: array.astype(mx.float16) for name, array in self.weights().items()}
        save_arrays(folder / WEIGHTS, weights)
        write_json(folder / CONFIGURATION, self.shape.configuration())

    def detach(self) -> None:
        """Leave the model as it was before."""
        self.switch(False)


def save_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is either whole or not there.

    Raises:
        EnvironmentCannot: where it cannot be written.
    """
    building = path.with_name(f"{building_prefix(path)}.safetensors")  # mlx adds that ending where it lacks
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(building), arrays, metadata)
        building.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            building.unlink(missing_ok=True)
        if failure := write_failure(path, error):
            raise failure from error
        raise


def load_adapter(model: nn.Module, folder: Path) -> Adapter:
    """Attach the adapter in ``folder`` to ``model``.

    Raises:
        UserError: where it is missing, damaged, of another kind or made for another model.
    """
    path = folder / CONFIGURATION
    try:
        configuration = read_json(path)
    except UserError:
        raise UserError(f"{path} is missing or damaged: {_way_out(folder)}") from None
    shape = shape_from(configuration, path, _way_out(folder))
    try:
        weights = read_arrays(folder / WEIGHTS)
    except ValueError as error:
        raise EnvironmentCannot(f"{folder / WEIGHTS} is missing or damaged: {_way_out(folder)}") from error
    if not are_finite(weights):
        raise UserError(f"{folder / WEIGHTS} holds numbers that are not finite: {_way_out(folder)}")
    if shape.keys is None:
        # What is adapted where nothing is said has changed from version to version of mlx-lm: the file tells.
        shape = replace(shape, keys=adapted_keys(weights))
    return attached(model, shape, weights, folder)


def attached(model: nn.Module, shape: LoraShape, weights: dict[str, mx.array], folder: Path) -> Adapter:
    """Attach an adapter with these arrays, which were read from ``folder``.

    Raises:
        UserError: where they belong to another model.
    """
    try:
        adapter = Adapter(model, shape)
    except ValueError as error:  # mlx-lm, for a key that is no linear layer
        raise UserError(f"{folder} cannot be attached: {one_line(str(error))[:200]}") from error
    try:
        adapter.set_weights(weights)
    except UserError as error:
        adapter.detach()
        raise UserError(f"{folder}: {error}; {_way_out(folder, 'name its own with --model')}") from None
    return adapter


def adapted_keys(names: Iterable[str]) -> tuple[str, ...]:
    """Which linear layers an adapter's arrays belong to, as ``LoraShape`` has them."""
    modules = {name.rpartition(".")[0] for name in names}
    return tuple(sorted({re.sub(r"^.*?\blayers\.\d+\.", "", module) for module in modules}))


def are_finite(arrays: dict[str, mx.array]) -> bool:
    """Whether every number in them is finite."""
    return all(bool(mx.isfinite(array).all().item()) for array in arrays.values())


def _way_out(folder: Path, elsewhere: str = "fetch or copy it again") -> str:
    """How an adapter that is good for nothing is had again; ``elsewhere`` where its folder is no run's."""
    if folder.name == "adapter" and (folder.parent / "manifest.json").exists():
        return open_run(folder.parent).way_to_adapter(again=True)
    return elsewhere


def shape_from(configuration: Any, path: Path, way_out: str) -> LoraShape:
    """What an adapter_config.json of mlx-lm says; ``path`` is the file, for the complaint.

    Raises:
        UserError: where it is of another kind, or says nothing that can be; the way out comes behind it.
    """
    try:
        kind = "dora" if configuration.get("use_dora") else configuration.get("fine_tune_type", "lora")
        if kind != "lora":
            named = one_line(str(kind))[:40]
            raise UserError(f"{path.parent} holds a '{named}' adapter: only LoRA can be toggled; {way_out}")
        parameters = configuration["lora_parameters"]
        keys = parameters.get("keys")
        layers = int(configuration["num_layers" if "num_layers" in configuration else "lora_layers"])
        shape = LoraShape(
            int(parameters["rank"]),
            _scale(configuration, parameters),
            layers if layers > 0 else ALL_LAYERS,
            None if keys is None else tuple(map(str, keys)),
        )
        if not 0 < shape.rank <= WIDEST or not math.isfinite(shape.scale):
            raise ValueError(f"rank {shape.rank}, scale {shape.scale}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(str(error))[:200]
        raise UserError(f"{path} is no LoRA configuration ({reason}): {way_out}") from error
    return shape


def _scale(configuration: dict[str, Any], parameters: dict[str, Any]) -> float:
    """The factor in front of B A.

    mlx-lm multiplied it by alpha / rank until 0.14.1. Later versions went on writing an alpha, and do not
    read it. Before 0.13 there was no DoRA: only such a file is surely of that time.
    """
    scale = float(parameters["scale"])
    if "lora_layers" in configuration and "use_dora" not in configuration and "alpha" in parameters:
        scale *= float(parameters["alpha"]) / int(parameters["rank"])
    return scale


def _difference(own: dict[str, mx.array], other: dict[str, mx.array]) -> str:
    """Why another adapter's arrays do not fit in the places of one's own; empty where they do."""
    if unknown := sorted(other.keys() - own.keys()):
        return f"it has {one_line(unknown[0])[:LONGEST_NAME]}, which this model has not"
    if lacking := sorted(own.keys() - other.keys()):
        return f"it lacks {lacking[0]}"
    for name, array in own.items():
        if array.shape != other[name].shape:
            return f"its {name} is {_size(other[name])}, and {_size(array)} here"
    return ""


def _size(array: mx.array) -> str:
    return " x ".join(map(str, array.shape))


LoraLayers = dict[str, tuple[float, np.ndarray, np.ndarray]]  # scale, A [inputs, rank], B [rank, outputs]


def lora_layers(model: nn.Module) -> LoraLayers:
    """The adapted layers of a model by name, as what another process with the same model can be told."""
    return {
        name: (module.scale, np.array(module.lora_a), np.array(module.lora_b))
        for name, module in model.named_modules()
        if _is_lora(module)
    }


@contextmanager
def with_lora_layers(model: nn.Module, layers: LoraLayers) -> Iterator[None]:
    """A model with these layers adapted. Those that were adapted already get the values, and keep them."""
    plain, adapted = [], []
    for name, module in model.named_modules():
        if name not in layers:
            continue
        scale, a, b = layers[name]
        layer = module
        if not _is_lora(module):
            layer = LoRALinear.from_base(module, r=a.shape[1], scale=scale, dropout=0.0)
            plain.append((name, module))
            adapted.append((name, layer))
        layer.scale, layer.lora_a, layer.lora_b = scale, mx.array(a), mx.array(b)
    model.update_modules(tree_unflatten(adapted))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(plain))


def _is_lora(module: Any) -> bool:
    return isinstance(module, LoRALinear)
