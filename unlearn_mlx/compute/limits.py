"""What a process may have of the machine's memory: not all of it under ``ulimit -v`` or in a container."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Addresses of Python's libraries and of the allocator's reserve, used or not: ulimit -v counts them all.
LIBRARY_ADDRESSES = int(0.8 * 2**30)

_SYSTEM = Path("/")
# The files of both versions of Linux's control groups: the limit, what is used, and which of that the
# system takes back by itself.
_GROUP_FILES = (
    ("memory.max", "memory.current", r"^inactive_file (\d+)"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", r"^total_inactive_file (\d+)"),
)
# What libraries and the system say where there is no more.
_COMPLAINTS = (
    "memoryerror",
    "bad_alloc",
    "unable to allocate",
    "cannot allocate memory",
    "failed to map segment",
    "start new thread",
)


@dataclass(frozen=True)
class Limit:
    """Less than the machine's memory: ``granted`` bytes, ``usable`` by a model, ``left`` to take."""

    granted: int
    usable: int
    left: int
    name: str  # of what limits it

    def __str__(self) -> str:
        return f"{self.name} grants {self.granted / 2**30:.1f} GB"


def limit(system: Path = _SYSTEM) -> Limit | None:
    """What bounds this process's memory most; None where nothing does."""
    total = psutil.virtual_memory().total
    found = [each for each in (*_of_addresses(), *_of_groups(system)) if each.granted < total]
    return min(found, key=lambda each: each.left, default=None)


def total_bytes() -> int:
    """The machine's memory, or what this process may have of it."""
    bound = limit()
    return bound.usable if bound else int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Bytes that this process may still take, as it stands."""
    bound, free = limit(), int(psutil.virtual_memory().available)
    return min(free, bound.left) if bound else free


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that memory ran out, in whatever words a library has for it."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether a line of a log says that memory ran out."""
    return any(complaint in text.casefold() for complaint in _COMPLAINTS)


def _of_addresses() -> Iterator[Limit]:
    """``ulimit -v``; macOS has it and does not heed it."""
    if sys.platform != "linux":
        return
    import resource

    granted = resource.getrlimit(resource.RLIMIT_AS)[0]
    if granted != resource.RLIM_INFINITY:
        left = granted - int(psutil.Process().memory_info().vms)
        yield Limit(granted, max(0, granted - LIBRARY_ADDRESSES), left, "ulimit -v")


def _of_groups(system: Path) -> Iterator[Limit]:
    """The limits of the control groups that this process is in, as containers have them."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    root = system / "sys/fs/cgroup"
    for _, _, rest in (line.partition(":") for line in lines):
        controllers, _, name = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        own = root / controllers / name.lstrip("/")
        # A container is shown its own group as the root, or under a name that is not there.
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError):
                yield from _of_group(folder)
            if folder == root:
                break


def _of_group(folder: Path) -> Iterator[Limit]:
    for most, used, given_back in _GROUP_FILES:
        path = folder / most
        if path.exists() and (text := path.read_text().strip()) != "max":
            kept = re.search(given_back, (folder / "memory.stat").read_text(), re.MULTILINE)
            taken = int((folder / used).read_text()) - (int(kept[1]) if kept else 0)
            yield Limit(int(text), int(text), int(text) - taken, "the container")
