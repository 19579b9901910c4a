"""Files that are either whole or not there, and JSON lines that survive a cut-off write."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError

NO_SPACE = 28  # errno.ENOSPC, the same number on Linux and macOS
DEEPEST = 64  # lists and objects inside each other; what goes deeper could not be written again


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` in one step: a reader sees the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> EnvironmentCannot:
    """The one-line form of a failed write."""
    if error.errno == NO_SPACE:
        return EnvironmentCannot(f"the disk is full at {path.parent}: free some space and run again")
    return EnvironmentCannot(f"cannot write {path}: {error.strerror or error}; check its permissions")


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
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore or delete it") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_atomically(path, encoded("".join(_line(row) for row in rows)))


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append JSON lines in one write, flushed to the disk."""
    try:
        with path.open("a+b") as file:
            # A write that was cut off left a line without its end: it must not swallow the next one.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(encoded("".join(_line(row) for row in rows)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from error


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The value on each line of a JSON-lines file that is not blank, with the line's number.

    Raises:
        UserError: naming the line that is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore it or delete it") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, parsed(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); mend or delete the line") from None


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
    for number, line in enumerate(text.splitlines(), start=1):
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
