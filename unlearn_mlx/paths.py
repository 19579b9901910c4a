"""Where things lie: what is shipped with the project, and the cache."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

PROJECT = _PACKAGE.parent  # the checkout; an installed package has nothing of the project beside it


def _shipped(name: str) -> Path:
    """A shipped folder: inside the package where it is installed, in the checkout otherwise."""
    packaged = _PACKAGE / f"_{name}"
    return packaged if packaged.is_dir() else PROJECT / name


DATA = _shipped("data")
SHIPPED_ADAPTERS = _shipped("adapters")


def cache_folder() -> Path:
    """Where what is made once is kept: ``$UNLEARN_CACHE``, else the system's cache folder."""
    if chosen := os.environ.get("UNLEARN_CACHE"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("unlearn-mlx")
