"""One model at a time: who holds one on this machine, and asking them to give it up.

Whoever loads a model says so by a file in the cache, with its process and its bytes. Where a run finds too
little room beside a chat's model, it asks for that: the chat lets go of it once its answer is said, and
loads it again when the run's process has ended.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.limits import limit
from unlearn_mlx.compute.memory import free_bytes, room_of
from unlearn_mlx.errors import Cancelled, EnvironmentCannot
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.building import remove
from unlearn_mlx.runs.files import write_json

LOOK = 0.1  # seconds between two looks whether a model was given up
PATIENCE = 120.0  # seconds: the longest answer ends first

_numbers = count()


@dataclass(frozen=True)
class Holder:
    """A process that has a model in memory."""

    path: Path  # of its file
    process: int
    held: int  # bytes
    gives_up: bool  # where it is asked to

    @property
    def asked(self) -> Path:
        """The file by which it is asked to give its model up; it names the process that asks."""
        return self.path.with_suffix(".asked")

    def asker_is_alive(self) -> bool:
        """Whether it was asked to give its model up, by a process that still works."""
        return _alive(self.asked) is not None

    def end(self) -> None:
        """Hold nothing any longer."""
        remove([self.path])


def hold(held: int, gives_up: bool) -> Holder:
    """Say that this process has a model of so many bytes, from now on."""
    path = cache_folder() / "holders" / f"{os.getpid()}-{next(_numbers)}.json"
    with suppress(EnvironmentCannot):  # where the cache cannot be written, none is told
        write_json(path, {**_this_process(), "held": held, "gives_up": gives_up})
    return Holder(path, os.getpid(), held, gives_up)


@contextmanager
def holding(held: int) -> Iterator[None]:
    """Hold a model of so many bytes, as long as the context lasts, and give it up to nobody.

    Those that this process asked for room get theirs back afterwards.
    """
    holder = hold(held, False)
    try:
        yield
    finally:
        holder.end()
        for path in holder.path.parent.glob("*.asked"):
            if (facts := _alive(path)) and facts["process"] == holder.process:
                remove([path])


def holders() -> list[Holder]:
    """The living processes that have a model."""
    found = []
    for path in sorted((cache_folder() / "holders").glob("*.json")):
        if (facts := _alive(path)) is not None:
            found.append(Holder(path, int(facts["process"]), int(facts["held"]), bool(facts["gives_up"])))
    return found


def room_now() -> int:
    """Bytes that a further model may take on this machine, beside those that others hold."""
    if not current_device().is_gpu and limit():
        return free_bytes()  # what others hold is of the machine's memory, and this is less
    beside = sum(holder.held for holder in holders())
    return min(free_bytes(), room_of(current_device()) - beside)


def make_room(
    needed: int,
    say: Callable[[str], None] = lambda text: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> int:
    """Have chats give up their models where there is no room for so many bytes. Returns the room there is.

    Raises:
        Cancelled: once ``is_cancelled`` returns True.
    """
    asked = [holder for holder in holders() if holder.gives_up]
    if not asked or room_now() >= needed:
        return room_now()
    say("a chat is asked to give up its model meanwhile")
    for holder in asked:
        write_json(holder.asked, _this_process())
    ends = time.monotonic() + PATIENCE
    while any(_alive(holder.path) for holder in asked) and time.monotonic() < ends:
        if is_cancelled():
            raise Cancelled("the wait for a model")
        time.sleep(LOOK)
    return room_now()


def _this_process() -> dict[str, float]:
    return {"process": os.getpid(), "began": psutil.Process().create_time()}


def _alive(path: Path) -> dict[str, float] | None:
    """What a file says of a process that still works; a file of one that does not is deleted."""
    with suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        facts: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        # Another process may have got the number since.
        if psutil.Process(int(facts["process"])).create_time() == facts["began"]:
            return facts
    remove([path])
    return None
