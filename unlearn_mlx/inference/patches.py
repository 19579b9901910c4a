"""All that is replaced in mlx-lm, from the first model that needs it to the release of the last.

``scaled_dot_product_attention``, in the modules of a model's parts: mlx-lm's layers know of each row's own
keys and values alone, and a prefix that rows share would have to be copied into the cache of each. Ours
meets it once for all of them (shared_prefix.py), and calls the original where nothing is shared.

``swiglu``, in the model's own module, for float32 on a CPU: mlx computes its exponential one number at a
time there, which takes six times as long as ours (compute/cpu_math.py).

mlx-lm's models look both up by name in their own module, which is what is changed here: for all models of
the architecture in this process, whoever opened them.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unlearn_mlx.compute.cpu_math import swiglu
from unlearn_mlx.inference.shared_prefix import attention_that_shares

ATTENTION = "scaled_dot_product_attention"
ACTIVATION = "swiglu"


@dataclass
class _Replaced:
    """What stood in a module under a name, and how many models need it replaced."""

    original: Any
    users: int = 0


# A module belongs to the process, so that what was done to it does too. Engines open models in threads.
_replaced: dict[tuple[str, str], _Replaced] = {}
_changing = threading.Lock()


class Patches:
    """What one model needs replaced. Each is put back once no model needs it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places: list[tuple[str, str]] = []

    def share_prefixes(self) -> None:
        """Let the model's layers see the prefixes that their caches share."""
        for module in sorted({type(part).__module__ for part in self._model.modules()}):
            self._replace(module, ATTENTION, attention_that_shares)

    def use_fast_activations(self) -> None:
        """Give a float32 model on a CPU the fast SwiGLU; its results differ by float rounding only."""
        self._replace(type(self._model).__module__, ACTIVATION, lambda _: swiglu)

    def release(self) -> None:
        """Need nothing replaced any longer; a second call does nothing."""
        with _changing:
            for place in self._places:
                entry = _replaced[place]
                entry.users -= 1
                if entry.users == 0:
                    module, name = place
                    setattr(sys.modules[module], name, entry.original)
                    del _replaced[place]
            self._places = []

    def _replace(self, module: str, name: str, made_of: Callable[[Any], Any]) -> None:
        """Put ``made_of(original)`` in a module's place of this name, if it has one."""
        place = module, name
        with _changing:
            if place in self._places or not hasattr(sys.modules[module], name):
                return
            if place not in _replaced:
                original = getattr(sys.modules[module], name)
                _replaced[place] = _Replaced(original)
                setattr(sys.modules[module], name, made_of(original))
            _replaced[place].users += 1
            self._places.append(place)
