"""A disk whose operations can be made to fail, one at a time."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from unlearn_mlx.runs import files

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
NEVER = -1


class FailingDisk:
    """As long as it is open, operation number ``fails`` below ``folder`` raises an error, the others work.

    Counted are the writes, fsyncs, renames and deletions of files, their creation and that of folders.
    """

    def __init__(self, folder: Path, fails: int = NEVER, error: int = errno.ENOSPC) -> None:
        self.folder, self.fails, self.error = os.path.realpath(folder), fails, error
        self.count = 0
        self.failed = ""  # the operation that did
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "FailingDisk":
        for name in ("replace", "rename", "unlink", "remove", "mkdir"):
            self._patch.setattr(os, name, self._failing(name, getattr(os, name)))
        self._patch.setattr(os, "open", self._failing_open(os.open))
        for module in (io, builtins):
            self._patch.setattr(module, "open", self._failing_file(module.open))
        self._patch.setattr(files, "_put", self._failing_put(files._put))
        self._patch.setattr(mx, "save_safetensors", self._failing_arrays(mx.save_safetensors))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _is_next(self, what: str, path: Any) -> bool:
        """Count an operation that is about to be; says whether it is the one to fail."""
        try:
            place = os.path.realpath(os.fspath(path))
        except TypeError:  # a descriptor
            return False
        if not place.startswith(self.folder):
            return False
        self.count += 1
        if self.count - 1 != self.fails:
            return False
        self.failed = f"{what} {os.path.relpath(place, self.folder)}"
        return True

    def _raise(self, path: Any) -> None:
        raise OSError(self.error, os.strerror(self.error), os.fspath(path))

    def _failing(self, what: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, *others: Any, **named: Any) -> Any:
            is_there = what == "mkdir" and os.path.isdir(path)  # which is no failure
            if named.get("dir_fd") is None and not is_there and self._is_next(what, path):
                self._raise(path)
            return does(path, *others, **named)

        return operation

    def _failing_open(self, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, flags: int, *others: Any, **named: Any) -> Any:
            if flags & os.O_CREAT and self._is_next("create", path):
                self._raise(path)
            return does(path, flags, *others, **named)

        return operation

    def _failing_file(self, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            if set(mode) & set("wax+") and self._is_next("open", path):
                self._raise(path)
            return does(path, mode, *others, **named)

        return operation

    def _failing_put(self, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(file: Any, data: Any) -> None:
            # Half of it is written, as on a disk that fills up; or all of it, and the disk does not keep it.
            if self._is_next("write", _path_of(file)):
                file.write(bytes(data)[: len(data) // 2])
                self._raise(_path_of(file))
            if self._is_next("fsync", _path_of(file)):
                file.write(bytes(data))
                self._raise(_path_of(file))
            does(file, data)

        return operation

    def _failing_arrays(self, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: str, arrays: Any, *others: Any, **named: Any) -> None:
            if self._is_next("save", path):
                Path(path).write_bytes(b"half")
                raise RuntimeError("[write] Unable to write 3088 bytes to file.")
            does(path, arrays, *others, **named)

        return operation


def _path_of(file: Any) -> str:
    """Where an open file lies; one that tempfile made has its descriptor for a name."""
    return os.readlink(f"/proc/self/fd/{file.fileno()}") if isinstance(file.name, int) else file.name
