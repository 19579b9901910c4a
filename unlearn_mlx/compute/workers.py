"""Worker processes that compute parts of the work where the CPU computes.

mlx's CPU backend runs everything but products on one core, so that a second core is idle for half of
the time. With a process for each core, and products of one thread, no core waits. Each has the weights
for itself, which a CPU's model is small enough for. On Metal and CUDA there are no workers.
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
from typing import Any, Self, TypeVar

from unlearn_mlx.compute.cpu_blas import blas_threads, use_blas_threads
from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.compute.device import Device
from unlearn_mlx.errors import Cancelled

MOST_WORKERS = 3  # each takes the memory of a model
LEAST_WEIGHTS = 2**28  # bytes; a smaller model has done its work before a worker has begun
WORKING_BYTES = 2**30  # what a worker takes beside the weights
LOOKS_A_SECOND = 20  # at whether the work was cancelled
ENDING = 1.0  # seconds that a worker whose connection is closed has to say how it ended

MODEL = "model"  # the name under which a worker keeps what its loader returned

T = TypeVar("T")


class WorkerLost(Exception):
    """A worker has ended or failed, as the text says; its part is left to be computed."""


class Worker:
    """A process that has loaded the same model. It computes one thing at a time."""

    def __init__(self, loader: Callable[..., Any], given: Sequence[Any], threads: int) -> None:
        """Start it: it calls ``loader(*given)``, a module's function, and gives each product ``threads``."""
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Ctrl-C of the terminal is its parent's to handle
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send((threads, loader, given))

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def ask(self, function: Callable[..., Any], name: str, given: Sequence[Any]) -> None:
        """Have ``function(kept, *given)`` computed there, ``kept`` being what it keeps under ``name``.

        Raises:
            WorkerLost: where the process has ended.
        """
        try:
            self._connection.send((function, name, given))
        except OSError as error:
            raise WorkerLost(self._how_it_ended()) from error

    def result(self, is_cancelled: Callable[[], bool] = lambda: False) -> Any:
        """Wait for what was asked.

        Raises:
            WorkerLost: where there will be no result.
            Cancelled: once ``is_cancelled`` returns True.
        """
        try:
            while not self._connection.poll(1 / LOOKS_A_SECOND):
                if is_cancelled():
                    raise Cancelled("the work")
            is_right, value = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkerLost(self._how_it_ended()) from error
        if not is_right:
            raise WorkerLost(value)
        return value

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "its connection is broken"
        return f"killed by signal {-code}, out of memory?" if code < 0 else f"ended with code {code}"


class WorkerPool:
    """Workers that share work with this process; without any, all work is done here.

    A worker that ends or fails is let go: its part is computed here, ``on_lost`` is told why, and the
    other workers go on.
    """

    def __init__(
        self,
        loader: Callable[..., Any],
        given: Sequence[Any],
        count: int,
        on_lost: Callable[[str], None] = lambda text: None,
    ) -> None:
        threads = blas_threads(count + 1)
        self.on_lost = on_lost
        self.workers = [Worker(loader, given, threads) for _ in range(count)]

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

    def run(
        self,
        function: Callable[..., T],
        kept: Any,
        parts: Sequence[tuple[Any, ...]],
        is_cancelled: Callable[[], bool] = lambda: False,
        name: str = MODEL,
    ) -> list[T]:
        """``function(kept, *part)`` for each part: the first here, the others by the workers meanwhile.

        A worker takes what it keeps under ``name`` in the place of ``kept``. ``function`` belongs to a
        module, since processes know it by its name.

        Raises:
            Cancelled: once ``is_cancelled`` returns True; the workers have ended then.
        """
        asked: dict[int, Worker] = {}
        for number, worker in zip(range(1, len(parts)), list(self.workers), strict=False):
            try:
                worker.ask(function, name, parts[number])
                asked[number] = worker
            except WorkerLost as error:
                self._lose(worker, error)
        if not asked:
            return [function(kept, *part) for part in parts]
        threads = use_blas_threads(blas_threads(len(asked) + 1))
        try:
            results: dict[int, T] = {0: function(kept, *parts[0])}
            for number, worker in asked.items():
                try:
                    results[number] = worker.result(is_cancelled)
                except WorkerLost as error:
                    self._lose(worker, error)
        except BaseException:
            # Nobody will fetch what they are computing.
            self._end(list(asked.values()))
            raise
        finally:
            use_blas_threads(threads)
        return [
            results[number] if number in results else function(kept, *part)
            for number, part in enumerate(parts)
        ]

    def map(
        self,
        function: Callable[..., Sequence[T]],
        kept: Any,
        order: Sequence[int],
        part_of: Callable[[Sequence[int]], tuple[Any, ...]],
        is_cancelled: Callable[[], bool] = lambda: False,
        here: tuple[Any, ...] = (),
    ) -> dict[int, T]:
        """What ``function`` finds for each number of ``order``, dealt out among this process and workers.

        It is given a part's arguments, made of its numbers, and ``here`` on top in this process.

        Raises:
            Cancelled: as ``run`` does.
        """
        count = self.count + 1
        dealt = [numbers for numbers in (order[first::count] for first in range(count)) if numbers]
        parts = [part_of(numbers) + (here if first == 0 else ()) for first, numbers in enumerate(dealt)]
        found = self.run(function, kept, parts, is_cancelled)
        return {
            number: value
            for numbers, values in zip(dealt, found, strict=True)
            for number, value in zip(numbers, values, strict=True)
        }

    @contextlib.contextmanager
    def keeping(
        self, name: str, opened: Callable[..., contextlib.AbstractContextManager[Any]], *given: Any
    ) -> Iterator[None]:
        """As long as it lasts, every worker keeps what the context ``opened(model, *given)`` gives.

        ``run`` finds it there under ``name``.
        """
        self._run_everywhere(_open, (name, opened, given))
        try:
            yield
        finally:
            self._run_everywhere(_leave, (name,))

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


ALONE = WorkerPool(lambda: None, (), 0)  # no workers


def worker_count(weights: int, available: int, device: Device) -> int:
    """How many workers a model of so many bytes gets, where so many bytes are free on the device."""
    if device.is_gpu or weights < LEAST_WEIGHTS:
        return 0
    # Half of the memory that is free stays so.
    fitting = available // (2 * (weights + WORKING_BYTES))
    return min(device.cores - 1, MOST_WORKERS, fitting)


class Kept:
    """What a worker process keeps from one question to the next: by name, and how each is left again."""

    def __init__(self, model: Any) -> None:
        self.values = {MODEL: model}
        self.contexts: dict[str, contextlib.AbstractContextManager[Any]] = {}


def _open(
    kept: Kept, name: str, opened: Callable[..., contextlib.AbstractContextManager[Any]], given: Sequence[Any]
) -> None:
    context = opened(kept.values[MODEL], *given)
    kept.values[name] = context.__enter__()
    kept.contexts[name] = context


def _leave(kept: Kept, name: str) -> None:
    del kept.values[name]
    kept.contexts.pop(name).__exit__(None, None, None)


def _serve(connection: Connection) -> None:
    prepare_cpu()  # before the loader's module is imported, and mlx with it
    kept, failure = None, WorkerLost()
    try:
        threads, loader, given = connection.recv()
        use_blas_threads(threads)
        kept = Kept(loader(*given))
    except Exception as error:
        failure = WorkerLost(_words(error))  # the answer to whatever is asked
    while True:
        question = connection.recv_bytes()
        try:
            if kept is None:
                raise failure
            function, name, given = pickle.loads(question)
            answer = pickle.dumps((True, function(kept.values[name] if name else kept, *given)))
        except Exception as error:
            answer = pickle.dumps((False, _words(error)))
        connection.send_bytes(answer)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, WorkerLost) else f"{type(error).__name__}: {text}"


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    """The worker's entry point, with the number of its connection."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent has closed it
        _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
