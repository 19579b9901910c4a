"""LoRA adapters in mlx-lm's format: attach, toggle, vary their strength, load and save."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.runs.files import read_json, write_json

WEIGHTS = "adapters.safetensors"
CONFIGURATION = "adapter_config.json"
WIDEST = 4096  # rank of an adapter that is loaded: a file of others' could ask for all memory


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
            UserError: where names or shapes are another adapter's.
        """
        own = self.weights()
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise UserError(
                "the adapter was made for another model or other LoRA settings; use its own model"
            )
        for name, module in self._lora_modules:
            for leaf in ("lora_a", "lora_b"):
                module[leaf] = weights[f"{name}.{leaf}"].astype(module[leaf].dtype)
        mx.eval([module.parameters() for _, module in self._lora_modules])

    def save(self, folder: Path) -> None:
        """Write the adapter so that ``mlx_lm.generate --adapter-path`` takes it. Weights are float16."""
        weights = {name: array.astype(mx.float16) for name, array in self.weights().items()}
        save_arrays(folder / WEIGHTS, weights)
        write_json(folder / CONFIGURATION, self.shape.configuration())

    def detach(self) -> None:
        """Leave the model as it was before."""
        self.switch(False)


def save_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    """Write a safetensors file that is either whole or not there.

    Raises:
        EnvironmentCannot: where it cannot be written.
    """
    building = path.with_name(f".building-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(building), arrays)
        building.replace(path)
    except (OSError, RuntimeError) as error:  # mlx raises the latter for a full disk
        building.unlink(missing_ok=True)
        raise EnvironmentCannot(
            f"cannot write {path}: is the disk full? Free some space and run again"
        ) from error


def load_adapter(model: nn.Module, folder: Path) -> Adapter:
    """Attach the adapter in ``folder`` to ``model``.

    Raises:
        UserError: where it is missing, of another kind or made for another model.
    """
    configuration = read_json(folder / CONFIGURATION)
    try:
        parameters = configuration["lora_parameters"]
        keys = parameters.get("keys")
        shape = LoraShape(
            int(parameters["rank"]),
            float(parameters["scale"]),
            int(configuration["num_layers"]),
            None if keys is None else tuple(map(str, keys)),
        )
        kind = configuration.get("fine_tune_type", "lora")
        if not 0 < shape.rank <= WIDEST or not math.isfinite(shape.scale):
            raise ValueError(f"rank {shape.rank}, scale {shape.scale}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder / CONFIGURATION} is no LoRA configuration ({error}); train again"
        ) from error
    if kind != "lora":
        raise UserError(f"{folder} holds a '{kind}' adapter; only LoRA adapters can be toggled")
    try:
        weights = mx.load(str(folder / WEIGHTS))
        assert isinstance(weights, dict)
        mx.eval(weights)
    except (RuntimeError, OSError, ValueError) as error:
        raise EnvironmentCannot(
            f"{folder / WEIGHTS} is missing or damaged: run 'unlearn train' again"
        ) from error
    adapter = Adapter(model, shape)
    try:
        adapter.set_weights(weights)
    except UserError:
        adapter.detach()
        raise
    return adapter


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


def set_row_strengths(model: nn.Module, strengths: Sequence[float | None] | None) -> None:
    """Give each row of the next batch its own adapter strength (None: 1, as trained); None ends that."""
    rows = None if strengths is None else tuple(1.0 if each is None else each for each in strengths)
    # Asked for at every token, and finding the layers takes milliseconds.
    if model.__dict__.get("row_strengths") == rows:
        return
    model.__dict__["row_strengths"] = rows
    scales: dict[float, mx.array] = {}  # one array for all layers of a scale
    for module in _lora_layers(model):
        trained = module.__dict__.pop("trained_scale", module.scale)
        module.scale = trained
        if rows is not None:
            module.__dict__["trained_scale"] = trained
            if trained not in scales:
                scales[trained] = trained * mx.array(rows)[:, None, None]
            module.scale = scales[trained]


def _lora_layers(model: nn.Module) -> list[LoRALinear]:
    return [module for _, module in model.named_modules() if _is_lora(module)]


def _is_lora(module: Any) -> bool:
    return isinstance(module, LoRALinear)
