"""Choices that are measured once for a model on a machine, a matter of seconds, and kept in the cache.

They are kept since they show in the last digits of products: a run that goes on is to draw the words that it
would have drawn.
"""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import locked, read_json, write_json


def measured_once(name: str, model: Any, choices: Collection[Any], measure: Callable[[Any], Any]) -> Any:
    """The one of ``choices`` that ``measure`` found for a ``ChatModel``, now or at an earlier time."""
    path = cache_folder() / f"{name}.json"
    device = current_device()
    key = f"{model.source.weights_sha256} on {device.backend} {device.name} {device.cores}"
    if (choice := _known(path).get(key)) in choices:
        return choice
    # Of two processes that need it one measures, so that both choose alike.
    with locked(path):
        known = _known(path)
        if known.get(key) not in choices:
            known[key] = measure(model)
            write_json(path, known)
    return known[key]


def _known(path: Path) -> dict[str, Any]:
    """What was measured so far; nothing where the file is damaged: it is measured again."""
    try:
        known = read_json(path) if path.exists() else {}
    except UserError:
        return {}
    return known if isinstance(known, dict) else {}


def decoding_seconds(model: Any, tokens: mx.array, caches: Any) -> float:
    """How long one token a row takes, [rows, 1], behind what the caches hold."""
    rows = mx.arange(tokens.shape[0])
    began = time.perf_counter()
    mx.eval(model.logits_at(tokens, rows, mx.zeros_like(rows), caches))
    return time.perf_counter() - began
