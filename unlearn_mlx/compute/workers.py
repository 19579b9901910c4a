"""Worker processes that compute parts of the work where the CPU computes.

mlx's CPU backend runs everything but products on one core, so that a second core is idle for half of
the time. With a process for each core, and products of one thread, no core waits. Each has the weights
for itself, which a CPU's model is small enough for. On Metal and CUDA there are no workers.
"""

import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import reduce
from typing import Any, Self, TypeVar

from unlearn_mlx.compute.cpu_blas import MOST_PROCESSES
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.worker import MODEL, Worker, WorkerLost, WorkerProcess, leave_context, open_context
from unlearn_mlx.errors import Cancelled

MOST_WORKERS = MOST_PROCESSES - 1
LEAST_WEIGHTS = 2**28  # bytes; a smaller model has done its work before a worker has begun
WORKING_BYTES = 2**30  # what a worker takes beside the weights


T = TypeVar("T")
Arrays = dict[str, Any]  # NumPy's
Shapes = dict[str, tuple[int, ...]]


class WorkerPool:
    """Workers that share work with this process; without any, all work is done here.

    A worker that ends or fails is let go: its share is computed here, ``on_lost`` is told why, and the
    other workers go on.
    """

    def __init__(
        self,
        loader: Callable[..., Any],
        given: Sequence[Any],
        count: int,
        on_lost: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.on_lost = on_lost
        self.workers: list[Worker] = [WorkerProcess(loader, given) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self.workers)

    def close(self) -> None:
        """End all workers."""
        self._end(self.workers)

    def map(
        self,
        function: Callable[..., Generator[T, None, None]],
        kept: Any,
        parts: Sequence[Any],
        common: tuple[Any, ...] = (),
        is_cancelled: Callable[[], bool] = lambda: False,
        here: tuple[Any, ...] = (),
        name: str = MODEL,
    ) -> list[T]:
        """What ``function(kept, parts, *common)`` finds for each part, dealt out among all processes.

        The parts are cut by a rule of the caller's that knows nothing of the workers, and ``function``, of a
        module, yields what it finds for each by itself: so that is the same with any number of workers, to
        the bit. A worker takes what it keeps under ``name`` in the place of ``kept``; ``here`` comes on top
        in this process.

        Raises:
            Cancelled: between two parts, once ``is_cancelled`` returns True; the workers have ended then.
        """
        count = min(self.count + 1, len(parts))
        dealt = [parts[first::count] for first in range(count)]
        found = self._run(
            function,
            kept,
            [(share, *common, *(() if first else here)) for first, share in enumerate(dealt)],
            is_cancelled,
            name,
        )
        return [found[number % count][number // count] for number in range(len(parts))]

    def sum(
        self,
        function: Callable[..., Generator[Arrays, None, None]],
        kept: Any,
        parts: Sequence[Any],
        common: tuple[Any, ...],
        shapes: Shapes,
        is_cancelled: Callable[[], bool] = lambda: False,
        name: str = MODEL,
    ) -> Arrays:
        """The sum of the arrays that ``function`` finds for each part, all of these ``shapes``.

        They are added in the parts' order, whoever computes which: the sum is the same, to the bit, with any
        number of workers.

        Raises:
            Cancelled: between two parts, once ``is_cancelled`` returns True; the workers have ended then.
        """
        return reduce(added, self.map(function, kept, parts, common, is_cancelled, name=name))

    def watching(self, is_cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """``is_cancelled``, and on the way whether all are still there who cannot be done without."""
        return is_cancelled

    def _run(
        self,
        function: Callable[..., Generator[T, None, None]],
        kept: Any,
        shares: Sequence[tuple[Any, ...]],
        is_cancelled: Callable[[], bool],
        name: str,
    ) -> list[list[T]]:
        """``function(kept, *share)`` for each share: the first here, the others by the workers meanwhile."""

        def found(number: int) -> list[T]:
            return found_by(function(kept, *shares[number]), is_cancelled)

        asked: dict[int, Worker] = {}
        for number, worker in zip(range(1, len(shares)), list(self.workers), strict=False):
            try:
                worker.ask(function, name, shares[number])
                asked[number] = worker
            except WorkerLost as error:
                self._lose(worker, error)
        if not asked:
            return [found(number) for number in range(len(shares))]
        try:
            results: dict[int, list[T]] = {0: found(0)}
            for number, worker in asked.items():
                try:
                    results[number] = worker.result(is_cancelled)
                except WorkerLost as error:
                    self._lose(worker, error)
        except BaseException:
            # Nobody will fetch what they are computing.
            self._end(list(asked.values()))
            raise
        return [results[number] if number in results else found(number) for number in range(len(shares))]

    @contextlib.contextmanager
    def keeping(
        self, name: str, opened: Callable[..., contextlib.AbstractContextManager[Any]], *given: Any
    ) -> Iterator[None]:
        """As long as it lasts, every worker keeps what the context ``opened(model, *given)`` gives.

        ``map`` finds it there under ``name``.
        """
        self._run_everywhere(open_context, (name, opened, given))
        try:
            yield
        finally:
            self._run_everywhere(leave_context, (name,))

    def _run_everywhere(self, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
        """Have every worker call ``function`` with all that it keeps."""
        for worker in list(self.workers):
            try:
                worker.ask(function, "", given)
                worker.result()
            except WorkerLost as error:
                self._lose(worker, error)

    def _lose(self, worker: Worker, error: WorkerLost) -> None:
        self._end([worker])
        self.on_lost(f"a worker process was lost ({error}); the work goes on with {self.count}")

    def _end(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.close()
        self.workers = [worker for worker in self.workers if worker not in workers]


def found_by(results: Generator[T, None, None], is_cancelled: Callable[[], bool]) -> list[T]:
    """All results, one after the other.

    Raises:
        Cancelled: between two of them, once ``is_cancelled`` returns True.
    """
    found = []
    with contextlib.closing(results):  # what it has changed of the model is put back first
        for result in results:
            found.append(result)
            if is_cancelled():
                raise Cancelled("the work")
    return found


def added(some: Arrays, others: Arrays) -> Arrays:
    """The sums of arrays of the same names."""
    return {name: array + others[name] for name, array in some.items()}


ALONE = WorkerPool(lambda: None, (), 0)  # no workers


def part_count(items: int, most: int, two_from: int) -> int:
    """How many parts work is cut into, whoever computes them: ``most`` items in each at the most.

    An even number of them, since most CPUs have two cores; one where there are fewer than ``two_from``.
    """
    return 2 * math.ceil(items / (2 * most)) if items >= two_from else 1


def worker_count(weights: int, available: int, device: Device) -> int:
    """How many workers a model of so many bytes gets, where so many bytes are free on the device.

    ``UNLEARN_WORKERS`` decides instead where the user has set it. The number changes how long the work
    takes, and nothing of what is found.
    """
    if device.is_gpu:
        return 0
    if (chosen := os.environ.get("UNLEARN_WORKERS", "")).isdecimal():
        return int(chosen)
    if weights < LEAST_WEIGHTS:
        return 0
    # Half of the memory that is free stays so.
    fitting = available // (2 * (weights + WORKING_BYTES))
    return min(device.cores - 1, MOST_WORKERS, fitting)
