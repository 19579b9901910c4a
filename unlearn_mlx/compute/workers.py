"""Other processes that take a share of the work where the CPU computes.

mlx's CPU backend runs everything but products on one core, so that a second core is idle for half of
the time. With a process for each core, and products of one thread, no core waits. Each has the weights
for itself, which a CPU's model is small enough for. On Metal and CUDA there are no helpers.
"""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from mlx.utils import tree_flatten

from unlearn_mlx.compute.batch_size import decode_batch_size
from unlearn_mlx.compute.cpu_blas import blas_threads, use_blas_threads
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.errors import Cancelled

if TYPE_CHECKING:
    from unlearn_mlx.inference.chat_model import ChatModel

MOST_HELPERS = 3  # each takes the memory of a model
LEAST_WEIGHTS = 2**28  # bytes; a smaller model has done its work before a helper has begun
WORKING_BYTES = 2**30  # what a helper takes beside the weights
LOOKS_A_SECOND = 20  # at whether the work was cancelled

T = TypeVar("T")


class HelperLost(Exception):
    """A helper has ended or failed; its share is left to be computed."""


class Helper:
    """A process with the same weights. It computes one thing at a time."""

    def __init__(self, model_name: str, threads: int = 1) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), model_name, str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Ctrl-C of the terminal is its parent's to handle
        )
        theirs.close()
        self._connection = Connection(ours.detach())

    def ask(self, function: Callable[..., Any], *given: Any) -> None:
        """Have ``function(model, *given)`` computed there: one of a module, known by its name.

        Raises:
            HelperLost: where the process has ended.
        """
        try:
            self._connection.send((function, given))
        except OSError as error:
            raise HelperLost from error

    def result(self, is_cancelled: Callable[[], bool]) -> Any:
        """Wait for what was asked.

        Raises:
            HelperLost: where there will be no result.
            Cancelled: once ``is_cancelled`` returns True.
        """
        try:
            while not self._connection.poll(1 / LOOKS_A_SECOND):
                if is_cancelled():
                    raise Cancelled("the work")
            right, value = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise HelperLost from error
        if not right:
            raise HelperLost(value)
        return value

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def helper_count(weights: int, available: int, device: Device) -> int:
    """How many helpers a model of so many bytes gets, where so many bytes are free on the device."""
    if device.is_gpu or weights < LEAST_WEIGHTS:
        return 0
    # Half of the memory that is free stays so.
    fitting = available // (2 * (weights + WORKING_BYTES))
    return min(device.cores - 1, MOST_HELPERS, fitting)


@contextlib.contextmanager
def with_helpers(model: "ChatModel", count: int | None = None) -> Iterator[None]:
    """Let a model's work be shared among the cores of a CPU as long as the context lasts.

    ``count`` is how many helpers there are; what ``helper_count`` says where it is None.
    """
    if count is None:
        weights = sum(array.nbytes for _, array in tree_flatten(model.model.parameters()))
        count = helper_count(weights, psutil.virtual_memory().available, current_device())
    if count:
        decode_batch_size(model)  # which they find measured
    threads = blas_threads(count + 1)
    model.helpers = [Helper(model.source.name, threads) for _ in range(count)]
    try:
        yield
    finally:
        for helper in model.helpers:
            helper.close()
        model.helpers = []


def in_shares(
    model: "ChatModel",
    function: Callable[..., T],
    shares: Sequence[tuple[Any, ...]],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[T]:
    """``function(model, *share)`` for each share: the first here, the others by the helpers meanwhile.

    A share whose helper is lost is computed here too.

    Raises:
        Cancelled: once ``is_cancelled`` returns True; the helpers have ended then.
    """
    asked: dict[int, Helper] = {}
    for number, helper in zip(range(1, len(shares)), list(model.helpers), strict=False):
        try:
            helper.ask(function, *shares[number])
            asked[number] = helper
        except HelperLost:
            model.helpers.remove(helper)
    if not asked:
        return [function(model, *share) for share in shares]
    threads = use_blas_threads(blas_threads(len(asked) + 1))
    try:
        results: dict[int, T] = {0: function(model, *shares[0])}
        for number, helper in asked.items():
            try:
                results[number] = helper.result(is_cancelled)
            except HelperLost:
                helper.close()
                model.helpers.remove(helper)
    except BaseException:
        # Nobody will fetch what they are computing.
        for helper in asked.values():
            helper.close()
        model.helpers = [helper for helper in model.helpers if helper not in asked.values()]
        raise
    finally:
        use_blas_threads(threads)
    return [
        results[number] if number in results else function(model, *share)
        for number, share in enumerate(shares)
    ]


def dealt_out(
    model: "ChatModel",
    function: Callable[..., Sequence[T]],
    order: Sequence[int],
    share_of: Callable[[Sequence[int]], tuple[Any, ...]],
    is_cancelled: Callable[[], bool] = lambda: False,
    here: tuple[Any, ...] = (),
) -> dict[int, T]:
    """What ``function`` finds for each number of ``order``, dealt out among this process and helpers.

    It is given a share's arguments, made of its numbers, and ``here`` on top in this process.
    """
    count = len(model.helpers) + 1
    parts = [part for part in (order[first::count] for first in range(count)) if part]
    shares = [share_of(part) + (here if number == 0 else ()) for number, part in enumerate(parts)]
    found = in_shares(model, function, shares, is_cancelled)
    return {
        i: value
        for part, of_part in zip(parts, found, strict=True)
        for i, value in zip(part, of_part, strict=True)
    }


def in_turn(model: "ChatModel", function: Callable[..., Any], *given: Any) -> None:
    """Have every helper of a model compute ``function(model, *given)``; those that cannot are let go."""
    for helper in list(model.helpers):
        try:
            helper.ask(function, *given)
            helper.result(lambda: False)
        except HelperLost:
            helper.close()
            model.helpers.remove(helper)


def _serve(connection: Connection, model_name: str, threads: int) -> None:
    from unlearn_mlx.models.registry import load_model, resolve_model

    use_blas_threads(threads)
    model = load_model(resolve_model(model_name))
    while True:
        function, given = connection.recv()
        try:
            connection.send((True, function(model, *given)))
        except (OSError, EOFError):
            raise
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    """The helper's entry point: the number of its connection, the model's name, a product's threads."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent has closed it
        _serve(Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3]))


if __name__ == "__main__":
    main()
