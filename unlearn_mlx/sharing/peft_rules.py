"""Which layers an adapter_config.json of PEFT means, by PEFT's own rules.

Its patterns are regular expressions of whoever made the adapter: each is given a second.
"""

from typing import Any

import regex

from unlearn_mlx.errors import UserError
from unlearn_mlx.text.printable import one_line

LONGEST_MATCH = 1.0  # seconds


def pattern_value(configuration: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """What ``rank_pattern`` or ``alpha_pattern`` says of a module: the first pattern that its name ends with.

    Raises:
        UserError: where it is no such table, or holds a pattern that cannot be followed.
    """
    patterns = configuration.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"the adapter's {key} is no table of layers")
    for pattern, value in patterns.items():
        if _matches(rf"(.*\.)?({pattern})$", module, key):
            return value
    return default


def is_targeted(configuration: dict[str, Any], module: str) -> bool:
    """Whether PEFT adapts a module: what a file holds of others it would leave out.

    Raises:
        UserError: where the configuration says it in a way that cannot be followed.
    """
    if _is_listed(configuration.get("exclude_modules"), module, "exclude_modules"):
        return False
    targets = configuration.get("target_modules")
    if targets is None:  # PEFT writes what it chose by itself: nothing is said
        return True
    if targets == "all-linear":  # but the head
        return module != "lm_head"
    if not _is_listed(targets, module, "target_modules"):
        return False
    layers = configuration.get("layers_to_transform")
    # As in PEFT: they restrict what is named by its end, not a pattern or a whole name.
    if layers is None or layers == [] or isinstance(targets, str) or module in targets:
        return True
    return _number(configuration, module) in (layers if isinstance(layers, list) else [layers])


def _is_listed(wanted: Any, module: str, key: str) -> bool:
    """Whether a name is matched by a pattern as a whole, or ends with one of several names."""
    if wanted is None:
        return False
    if isinstance(wanted, str):
        return _matches(rf"(?:{wanted})\Z", module, key) is not None
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise UserError(f"the adapter's {key} is no list of layers")
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _number(configuration: dict[str, Any], module: str) -> int | None:
    """The number of the layer that a module is in; None where its name has none."""
    lists = configuration.get("layers_pattern") or [r"[^.]*"]
    for name in [lists] if isinstance(lists, str) else lists:
        if found := _matches(rf"(?:.*?\.)?{name}\.(?P<number>\d+)\.", module, "layers_pattern"):
            return int(found["number"])
    return None


def _matches(pattern: str, module: str, key: str) -> Any:
    try:
        return regex.match(pattern, module, timeout=LONGEST_MATCH)
    except TimeoutError:
        raise UserError(f"the adapter's {key} has a pattern that takes too long: not followed") from None
    except (regex.error, RecursionError, MemoryError) as error:
        reason = one_line(str(error))[:80]
        raise UserError(f"the adapter's {key} has a pattern that cannot be read ({reason})") from None
