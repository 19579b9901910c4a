"""Files that are either whole or not there, and JSON lines that survive a cut-off write."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError

LONGEST_TEXT = 1000  # words of a text that a model is given
NO_SPACE = 28  # errno.ENOSPC, the same number on Linux and macOS


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
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: where the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore or delete it") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_atomically(path, "".join(_line(row) for row in rows))


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append JSON lines in one write, flushed to the disk."""
    try:
        with path.open("a+b") as file:
            # A write that was cut off left a line without its end: it must not swallow the next one.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write("".join(_line(row) for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from error


def read_rows(path: Path, required: Iterable[str] = (), longest: int | None = None) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file.

    ``longest`` is how many words a text in it may have at most; None takes any.

    Raises:
        UserError: naming the line that is no JSON object, lacks a ``required`` field, or has a text that
            is too long or no file can hold.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; restore it or delete it") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); mend or delete the line") from None
        missing = [field for field in required if not isinstance(row, dict) or field not in row]
        if missing or not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: lacks {', '.join(missing)}; mend or delete the line")
        for text in _texts(row) if longest is not None or "\\u" in line else ():
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(
                    f"{path}, line {number}: has half a character (such as \\ud83d); mend or delete the line"
                )
            count = len(text.split())
            if longest is not None and count > longest:
                raise UserError(
                    f"{path}, line {number}: a text has {count} words, more than {longest}; "
                    "shorten or delete it"
                )
        rows.append(row)
    return rows


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal that a killed writer may have cut off: a broken line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """Every string in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)


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
    return " ".join(str(error).split())
