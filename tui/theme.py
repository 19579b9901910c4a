"""The colours that the user has chosen, kept from one start to the next."""

from contextlib import suppress
from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import write_atomically


def kept_theme() -> str:
    """The name of the theme that was chosen last; empty where none was."""
    try:
        return _file().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def keep_theme(name: str) -> None:
    """Keep a theme's name; where the disk is full the app goes on without."""
    with suppress(UserError):
        write_atomically(_file(), name + "\n")


def _file() -> Path:
    return cache_folder() / "theme.txt"
