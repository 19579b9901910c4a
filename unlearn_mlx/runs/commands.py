"""Commands that a message names: they can be copied as they stand, and do what is said of them."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_mlx.config import PRESETS, SIZED, make_settings


def shell_word(word: Path | str) -> str:
    """A path or name as a shell takes it for one word; a message's own single quotes may stand around."""
    text = str(word)
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def making_command(topic: str, model_name: str, settings: Mapping[str, Any], out: Path | None = None) -> str:
    """The command that makes a run, or goes on with it: preset and settings in as few words as it takes."""
    options = {preset: _options(preset, settings) for preset in PRESETS}
    preset = min(PRESETS, key=lambda preset: (len(options[preset]), preset != "standard"))
    words = ["unlearn run", shell_word(topic), "--model", shell_word(model_name)]
    if out is not None:
        words += ["--out", shell_word(out)]
    if preset != "standard":
        words += ["--preset", preset]
    return " ".join(words + options[preset])


def _options(preset: str, settings: Mapping[str, Any]) -> list[str]:
    usual = make_settings(preset).model_dump()
    named = {key for key, value in settings.items() if key in usual and usual[key] != value}
    if named & SIZED:  # what is left out of these would follow from the model's size
        named |= SIZED & settings.keys()
    return [
        f"--{key.replace('_', '-')} {shell_word(str(value))}"
        for key, value in settings.items()
        if key in named
    ]


def import_command(where: str, topic: str, model_name: str, out: Path) -> str:
    """The command that makes a run of somebody's adapter again."""
    words = ("import", where, "--topic", topic, "--model", model_name, "--out", str(out))
    return " ".join(["unlearn", *map(shell_word, words)])
