"""The two files of an adapter in mlx-lm's format, and which adapter they are."""

import hashlib
from functools import lru_cache
from pathlib import Path

from unlearn_mlx.runs.files import sha256_of

WEIGHTS = "adapters.safetensors"
CONFIGURATION = "adapter_config.json"
ADAPTER_FILES = (WEIGHTS, CONFIGURATION)


def is_adapter(folder: Path) -> bool:
    """Whether a folder has both files."""
    return all((folder / name).is_file() for name in ADAPTER_FILES)


def adapter_sha256(folder: Path) -> str:
    """The SHA-256 of weights and configuration together, 64 hex digits; empty where one is missing."""
    try:
        states = [(folder / name).stat() for name in ADAPTER_FILES]
        return _sha256(
            folder.resolve(), tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
        )
    except OSError:
        return ""


def results_belong(sha256: str, folder: Path) -> bool:
    """Whether results that bear an adapter's hash are of the adapter of a run, or of a folder of its own.

    Results without one, as earlier versions wrote them, are taken for the adapter's that lies there.
    """
    return not sha256 or sha256 == adapter_sha256(folder if is_adapter(folder) else folder / "adapter")


@lru_cache(maxsize=256)
def _sha256(folder: Path, version: tuple[tuple[int, ...], ...]) -> str:
    """``version`` changes with the files: lists of runs ask again and again."""
    digests = "".join(sha256_of(folder / name) for name in ADAPTER_FILES)
    return hashlib.sha256(digests.encode()).hexdigest()
