"""Several adapters over one model, where each row of a batch is computed with its own, or with none."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from unlearn_mlx.inference.adapters import Adapter, load_adapter
from unlearn_mlx.runs.adapter_files import WEIGHTS

ADAPTERS_KEPT = 8  # of those that no row uses: going back to one costs nothing


class Weights(NamedTuple):
    """What computes a row: the base alone where ``adapter`` is None."""

    adapter: tuple[Path, int] | None = None  # its folder, and when what stands there was written
    strength: float = 1.0  # 0 is the base, 1 the adapter as trained


BASE = Weights()


class RowAdapters:
    """The adapters of a model, by what each row of the next batch needs.

    Where no row needs any, the plain layers stand in the model: bit-identical to the base, and free.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._adapters: dict[tuple[Path, int], Adapter] = {}  # all off; the last used comes last
        self._plain: dict[str, nn.Module] = {}  # layers that some adapter changes
        self._layers: dict[str, _RowLoRA] = {}  # and what takes their places
        self._rows: tuple[Weights, ...] | None = ()  # that the model is set up for
        self._in_place: set[str] = set()  # the layers that are not the plain ones now

    def weights(self, folder: Path | None, strength: float = 1.0) -> Weights:
        """What computes a row with the adapter in ``folder``, loaded where it was not yet.

        Raises:
            UserError: where it is missing, damaged or made for another model.
        """
        if folder is None:
            return BASE
        key = _version(folder)
        if key in self._adapters:
            self._adapters[key] = self._adapters.pop(key)
            return Weights(key, strength)
        self.use(())
        adapter = load_adapter(self._model, folder)
        adapter.switch(False)
        self._adapters[key] = adapter
        for name, layer in adapter.layers():
            self._plain.setdefault(name, layer.linear)
        return Weights(key, strength)

    def keep(self, used: Collection[Weights]) -> None:
        """Forget adapters that no row uses, but for the last few."""
        idle = [key for key in self._adapters if all(weights.adapter != key for weights in used)]
        for key in idle[: max(0, len(idle) - ADAPTERS_KEPT)]:
            del self._adapters[key]

    def use(self, rows: Sequence[Weights]) -> None:
        """Set the model up for a batch of these rows."""
        wanted = tuple(rows)
        if wanted == self._rows:  # asked for at every token
            return
        self._rows = None  # not known, should this be interrupted
        parts: dict[str, list[_Part]] = {}
        keys = dict.fromkeys(weights.adapter for weights in wanted if weights.adapter is not None)
        for key in keys:
            strengths = [weights.strength if weights.adapter == key else 0.0 for weights in wanted]
            scales: dict[float, Any] = {}  # one array for all layers of a scale
            for name, layer in self._adapters[key].layers():
                if layer.scale not in scales:
                    scales[layer.scale] = _scale(layer.scale, strengths)
                parts.setdefault(name, []).append((layer.lora_a, layer.lora_b, scales[layer.scale]))
        changed: list[tuple[str, nn.Module]] = [
            (name, self._plain[name]) for name in self._in_place - parts.keys()
        ]
        for name, of_layer in parts.items():
            layer = self._layers.setdefault(name, _RowLoRA(self._plain[name]))
            layer.__dict__["parts"] = of_layer
            if name not in self._in_place:
                changed.append((name, layer))
        if changed:
            self._model.update_modules(tree_unflatten(changed))
        self._in_place = set(parts)
        self._rows = wanted


_Part = tuple[mx.array, mx.array, Any]  # A [inputs, rank], B [rank, outputs], scale: a number or [rows, 1, 1]


class _RowLoRA(nn.Module):
    """y = W x + the sum over adapters of scale * B A x, with a scale for each row (Hu et al. 2021)."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.__dict__["parts"] = []  # beside the module's parameters: they are the adapters'

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear(x)
        for a, b, scale in self.__dict__["parts"]:
            y = y + (scale * ((x @ a) @ b)).astype(x.dtype)
        return y


def _scale(trained: float, strengths: Sequence[float]) -> Any:
    if len(set(strengths)) == 1:
        return trained * strengths[0]
    return trained * mx.array(list(strengths))[:, None, None]


def _version(folder: Path) -> tuple[Path, int]:
    """What tells an adapter from another and from what stood in its folder before."""
    weights = folder / WEIGHTS
    return folder, weights.stat().st_mtime_ns if weights.exists() else 0
