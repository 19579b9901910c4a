"""The one writer of a run: a lock that ends with its process, and who holds it."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import Field

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import disk_error, write_json
from unlearn_mlx.runs.records import Record, read_record
from unlearn_mlx.text.printable import one_line

WRITER = ".writer.json"  # which process works on a run, as long as it does


class Busy(UserError):
    """Another process works on the run."""


class Writer(Record):
    """Which process works on a run."""

    pid: int
    host: str
    since: Annotated[float, Field(ge=0, lt=2**33)]  # seconds since 1970


@contextmanager
def locked_run(path: Path) -> Iterator[None]:
    """Hold the lock of a run directory.

    Raises:
        Busy: where another process does.
        EnvironmentCannot: where nothing can be written there.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(_who_writes(path)) from None
    except OSError as error:
        raise disk_error(path / ".lock", error) from error
    try:
        write_json(path / WRITER, Writer(pid=os.getpid(), host=platform.node(), since=time.time()).as_row())
        yield
    finally:
        with suppress(OSError):
            (path / WRITER).unlink()
        lock.release()


def _who_writes(path: Path) -> str:
    way_out = "wait for it, or use '--out' for a second run"
    try:
        writer = read_record(path / WRITER, Writer)
    except UserError:  # it has only just begun
        return f"another process works on {path}: {way_out}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(writer.since))
    return (
        f"another process works on {path}, number {writer.pid} on {one_line(writer.host)[:80]} "
        f"since {since}: {way_out}"
    )
