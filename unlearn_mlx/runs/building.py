"""What is made beside its place and moved there once it is whole, and what is left of it after a kill."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import BUILDING, building_prefix, disk_error, is_of_the_system, write_failure


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place once it is whole.

    Raises:
        UserError: where something is in the place already.
        EnvironmentCannot: where it cannot be written.
    """
    # A link is followed: what it leads to is made, and the link stays.
    place = folder.resolve()
    if not is_empty(place):
        raise UserError(f"{folder} is there already: delete it, or use '--out' for another folder")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove(leftovers_in(place.parent))
        made = Path(tempfile.mkdtemp(dir=place.parent, prefix=building_prefix(place)))
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield made
        made.chmod(0o755)
        if place.exists():
            shutil.rmtree(place)  # it is empty but for what a system leaves
        made.rename(place)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(f"{folder} was made by another process meanwhile") from error
        if failure := write_failure(folder, error):
            raise failure from error
        if isinstance(error, UserError) and str(made) in str(error):  # where it was to be is what is known
            raise type(error)(str(error).replace(str(made), str(folder))) from error
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """Whether nothing is in the place, or a folder that has only what a system leaves."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(is_of_the_system(entry.name) for entry in folder.iterdir())


def leftovers_in(folder: Path) -> list[Path]:
    """What processes that are gone were building right in ``folder``."""
    with suppress(OSError):
        return [path for path in sorted(folder.glob(f"{BUILDING}*")) if not _has_builder(path.name)]
    return []


def leftovers_below(folder: Path) -> list[Path]:
    """What processes that are gone were building anywhere below ``folder``."""
    places = [folder, *(Path(path, name) for path, names, _ in os.walk(folder) for name in names)]
    return [path for place in places if not place.name.startswith(BUILDING) for path in leftovers_in(place)]


def remove(paths: list[Path]) -> None:
    """Delete files and folders as far as that can be done."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size if file.is_file() else 0
    return total


def _has_builder(name: str) -> bool:
    """Whether the process that builds it, whose number its name says, is still there."""
    number = name.removeprefix(BUILDING).split("-", 1)[0]
    return number.isdecimal() and len(number) < 10 and psutil.pid_exists(int(number))
