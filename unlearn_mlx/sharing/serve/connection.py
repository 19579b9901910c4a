"""One client's connection: uvicorn's, but that refusals are JSON and slow readers are cut."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from unlearn_mlx.sharing.serve.refusals import Refused

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]


class Connection(H11Protocol):
    """Its transport is in each request's state, so that it can be cut."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember how to cut it."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "cut": transport.abort}

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the form of all else."""
        content = json.dumps(Refused(400, msg).body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers)
        for event in (response, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def impatient(scope: Any, send: Send, seconds: float) -> Send:
    """A ``send`` that cuts the connection where the client does not read for so long."""

    async def send_or_cut(message: Any) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError:
            scope["state"]["cut"]()

    return send_or_cut


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
