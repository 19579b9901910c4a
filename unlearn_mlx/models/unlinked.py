"""Caches without links, as on some disks and on Windows: a model's files lie there by themselves.

With links the cache names every file by its hash. Without them nothing does, and what is fetched by its hash
lies there twice: so the hashes are written down, and the second copy is removed.
"""

from contextlib import suppress
from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import sha256_of, write_json
from unlearn_mlx.runs.records import Record, read_record


class Hashes(Record):
    """The SHA-256 of each file of a model, as it was when it was fetched."""

    files: dict[str, str]


def keep_hashes(folder: Path) -> None:
    """Write down what was fetched into a folder of the hub's cache, and remove the second copies."""
    unlinked = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    if not unlinked:
        return
    hashes = {path.name: sha256_of(path) for path in unlinked}
    write_json(_record(folder), Hashes(files=hashes).as_row())
    for digest in hashes.values():
        with suppress(OSError):
            (folder.parents[1] / "blobs" / digest).unlink(missing_ok=True)


def damaged_unlinked(folder: Path) -> list[str]:
    """The files without links that are not what they were when they were fetched, or were never noted."""
    unlinked = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    try:
        known = read_record(_record(folder), Hashes).files if unlinked else {}
    except UserError:
        known = {}
    return [path.name for path in unlinked if known.get(path.name) != sha256_of(path)]


def _record(folder: Path) -> Path:
    return cache_folder() / "model-hashes" / f"{folder.parents[1].name}-{folder.name}.json"
