"""Files that are either whole or not there, and JSON lines that survive a cut-off write."""

import errno
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.text.decoding import decoded, quotes_hint

BUILDING = ".building-"  # what a file or folder that is not whole yet begins with, then its process's number
# How an operating system's failed write is told: what happened, and the way out.
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full at {folder}: free some space and run again",
    errno.EDQUOT: "your share of the disk is used up at {folder}: free some space and run again",
    errno.EIO: "the disk failed at {path}: see to it, then run again; what is there already is kept",
    errno.EROFS: "{folder} is on a disk that can only be read: use one that can be written",
}
DEEPEST = 64  # lists and objects inside each other; what goes deeper could not be written again


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` in one step: a reader sees the old file or the new one.

    Raises:
        EnvironmentCannot: where it cannot be written, or something else than a file is there.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            raise EnvironmentCannot(f"{path} is no regular file, and is left as it is: name another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=building_prefix(path))
        try:
            with os.fdopen(handle, "wb", buffering=0) as file:
                _put(file, data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise disk_error(path, error) from error


def building_prefix(path: Path) -> str:
    """How the name of what is to become ``path`` begins: it says whose it is, should it be left over."""
    return f"{BUILDING}{os.getpid()}-{path.name[:40]}-"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that makes ``path``; another one waits until this one has.

    Raises:
        EnvironmentCannot: where nothing can be written beside it.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def is_of_the_system(name: str) -> bool:
    """Whether a file is one that macOS or Windows leaves in every folder."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith("._")


def _put(file: IO[bytes], data: bytes) -> None:
    """Write into an unbuffered file so that it is on the disk, not on its way there."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def disk_error(path: Path, error: OSError) -> EnvironmentCannot:
    """The one-line form of a failed write."""
    known = _DISK_ERRORS.get(error.errno or 0, "cannot write {path}: {reason}; check its permissions")
    text = known.format(folder=path.parent, path=path, reason=error.strerror or error)
    if path.is_relative_to(cache_folder()):
        text += ", or set UNLEARN_CACHE to another folder"
    return EnvironmentCannot(text)


def write_failure(path: Path, error: Exception) -> EnvironmentCannot | None:
    """A failed write in one line, as libraries raise it; None where it is another error.

    mlx raises RuntimeError and tells no cause, tokenizers an Exception with the number in its text.
    """
    if isinstance(error, OSError):
        return disk_error(path, error)
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return disk_error(path, OSError(int(told[1]), os.strerror(int(told[1]))))
    if isinstance(error, RuntimeError) and str(error).startswith(("[write]", "[save")):
        return EnvironmentCannot(f"cannot write {path}: is the disk full? Free some space and run again")
    return None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_atomically(path, encoded(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def encoded(text: str) -> bytes:
    """JSON text as UTF-8; half a surrogate pair, which UTF-8 cannot hold, becomes JSON's own escape."""
    return text.encode("utf-8", "backslashreplace")


def parsed(text: str) -> Any:
    """The value in a JSON text.

    Raises:
        ValueError: where it is none, or nested deeper than ``DEEPEST``.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError("nested too deeply")
    return value


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: where the file is missing or damaged.
    """
    try:
        return parsed(decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore or delete it") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_atomically(path, encoded("".join(_line(row) for row in rows)))


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append JSON lines in one write, flushed to the disk; all of them or, where that fails, none."""
    data = encoded("".join(_line(row) for row in rows))
    try:
        with path.open("a+b", buffering=0) as file:
            before = file.tell()
            # A write that was cut off left a line without its end: it must not swallow the next one.
            if before and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                data = b"\n" + data
            try:
                _put(file, data)
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise disk_error(path, error) from error


def append_checked(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows that only the program reads: each with a checksum, so that a damaged one is found."""
    append_rows(path, [{**row, "check": checksum(row)} for row in rows])


def checksum(row: dict[str, Any]) -> str:
    """The CRC-32 of a row, 8 hex digits."""
    return f"{zlib.crc32(json.dumps(row, sort_keys=True).encode()):08x}"


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The value on each line of a JSON-lines file that is not blank, with the line's number.

    Raises:
        UserError: naming the line that is no JSON.
    """
    try:
        lines = decoded(path.read_bytes()).split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore it or delete it") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, parsed(line)
        except ValueError as error:
            reason = f"{error}{quotes_hint(line)}"
            raise UserError(f"{path}, line {number}: not JSON ({reason}); mend or delete the line") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file as they stand; ``runs.records`` reads them as types.

    Raises:
        UserError: naming the line that is no JSON object.
    """
    rows = []
    for number, row in numbered_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: it is no JSON object; mend or delete the line")
        rows.append(row)
    return rows


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal that a killed writer may have cut off: a broken line is left out.

    Raises:
        UserError: where the file cannot be read.
    """
    return [row for _, row in numbered_journal(path)]


def numbered_journal(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of ``read_journal``, each with its line's number."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore it or delete it") from error
    rows = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        try:
            row = parsed(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append((number, row))
    return rows


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(row: dict[str, Any]) -> str:
    # U+2028 and its like end a line for splitlines(); escaped they stay inside their row.
    return (
        json.dumps(row, ensure_ascii=False)
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .replace("\u0085", "\\u0085")
        + "\n"
    )


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error)).split())
