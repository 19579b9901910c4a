"""One who has loaded the same model and is asked over a connection: a process here, or another host's.

``python -m unlearn_mlx.compute.worker NUMBER`` is such a process, with the number of its connection.
"""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import Cancelled

LOOKS_A_SECOND = 20  # at whether the work was cancelled
ENDING = 1.0  # seconds that a worker whose connection is closed has to say how it ended
BROKEN = "its connection is broken"  # where no more is known of how it ended
MODEL = "model"  # the name under which a worker keeps what its loader returned


class WorkerLost(Exception):
    """A worker has ended or failed, as the text says; its part is left to be computed."""


class Worker:
    """Somebody who has loaded the same model, behind a connection. They compute one thing at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self, function: Callable[..., Any], name: str, given: Sequence[Any]) -> None:
        """Have ``function(kept, *given)`` computed there, ``kept`` being what it keeps under ``name``.

        Raises:
            WorkerLost: where it has ended.
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
        """Let it go, whatever it does."""
        self._connection.close()

    def _how_it_ended(self) -> str:
        return BROKEN


class WorkerProcess(Worker):
    """A process on this machine."""

    def __init__(self, loader: Callable[..., Any], given: Sequence[Any]) -> None:
        """Start it: it calls ``loader(*given)``, a module's function."""
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
        super().__init__(Connection(ours.detach()))
        self._connection.send((loader, given))

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        super().close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return super()._how_it_ended()
        return f"killed by signal {-code}, out of memory?" if code < 0 else f"ended with code {code}"


class Kept:
    """What a worker process keeps from one question to the next: by name, and how each is left again."""

    def __init__(self, model: Any) -> None:
        self.values = {MODEL: model}
        self.contexts: dict[str, contextlib.AbstractContextManager[Any]] = {}


def open_context(
    kept: Kept, name: str, opened: Callable[..., contextlib.AbstractContextManager[Any]], given: Sequence[Any]
) -> None:
    """Have a worker keep under ``name``, from now on, what a context gives that ``opened`` makes."""
    context = opened(kept.values[MODEL], *given)
    kept.values[name] = context.__enter__()
    kept.contexts[name] = context


def leave_context(kept: Kept, name: str) -> None:
    """Have it leave that context."""
    del kept.values[name]
    kept.contexts.pop(name).__exit__(None, None, None)


def serve(connection: Connection, ends_on_failure: bool = False) -> str:
    """Load what the first message says, and compute what the others ask, until an empty one comes.

    Returns what failed, where that was the end; else nothing.

    Raises:
        EOFError, OSError: where the connection breaks.
    """
    prepare_cpu()  # before the loader's module is imported, and mlx with it
    kept, failure = None, WorkerLost()
    if not (first := connection.recv_bytes()):
        return ""
    try:
        loader, given = pickle.loads(first)
        kept = Kept(loader(*given))
    except Exception as error:
        failure = WorkerLost(_words(error))  # the answer to whatever is asked
    while question := connection.recv_bytes():
        is_right = True
        try:
            if kept is None:
                raise failure
            function, name, given = pickle.loads(question)
            found = function(kept.values[name] if name else kept, *given)
            answer = pickle.dumps((True, list(found) if isinstance(found, Generator) else found))
        except Exception as error:
            is_right, words = False, _words(error)
            answer = pickle.dumps((False, words))
        connection.send_bytes(answer)
        if ends_on_failure and not is_right:
            return words
    return ""


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
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
