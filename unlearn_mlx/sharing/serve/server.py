"""The server of one model and its runs' adapters: its names, its address, and its end."""

import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.serve.application import application
from unlearn_mlx.sharing.serve.asking import Served
from unlearn_mlx.sharing.serve.connection import Connection
from unlearn_mlx.sharing.serve.gate import Admission

HOST = "127.0.0.1"
LONGEST_DRAIN = 120  # seconds for answers that are under way when the server is to end


def model_names(runs: Sequence[Run]) -> dict[str, Path | None]:
    """What base and adapters are called by clients, and the folder of each adapter.

    Raises:
        UserError: where a run has no adapter yet, or another base.
    """
    first = runs[0]
    base = Path(first.model_name).name
    names: dict[str, Path | None] = {base: None}
    for run in runs:
        if run.manifest.model != first.manifest.model:
            raise UserError(
                f"{run.path} is of {run.model_name}, {first.path} of {first.model_name}: "
                "serve runs of one model together"
            )
        name = f"{base}-without-{run.topic.slug}"
        same = sum(other == name or other.startswith(f"{name}-") for other in names)
        names[f"{name}-{same + 1}" if name in names else name] = run.finished_adapter()
    return names


class Server:
    """Serves a model and adapters under their names, ``most_rows`` answers at once. It loads the model first.

    Raises:
        UserError: where the port is taken or the model cannot be loaded.
    """

    def __init__(
        self,
        model_name: str,
        adapters: dict[str, Path | None],
        port: int,
        host: str = HOST,
        admission: Admission | None = None,
        most_rows: int | None = None,
    ) -> None:
        self._socket = _listening(host, port)
        self.names = tuple(adapters)
        self.engine = Engine(model_name, None, most_rows, gives_up=False)
        try:
            self.engine.wait_until_ready()
        except BaseException:
            self._socket.close()
            raise
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # it would tell what was asked
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(Served(self.engine, adapters), admission or Admission()),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=LONGEST_DRAIN,
            )
        )

    @property
    def place(self) -> tuple[str, int]:
        """Host and port where it listens."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def address(self) -> str:
        """Where clients find it."""
        host, port = self.place
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def serve(self) -> None:
        """Answer until ``close``, Ctrl-C or SIGTERM; what is under way then is answered first."""
        try:
            with _signals_that_end_nothing():
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self.engine.close(at_once=True)

    def close(self) -> None:
        """End ``serve``, from another thread."""
        self._server.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EnvironmentCannot(
            f"no address '{host}' here ({error}): choose another with '--host'"
        ) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(256)
    except OSError as error:
        opened.close()
        raise EnvironmentCannot(
            f"port {port} of {host} cannot be had ({error.strerror}): choose another with '--port'"
        ) from error
    return opened


@contextmanager
def _signals_that_end_nothing() -> Iterator[None]:
    """uvicorn ends in order at a signal, and then raises it again for whoever handled it before."""
    try:
        before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where none arrives
        yield
        return
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
