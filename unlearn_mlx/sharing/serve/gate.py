"""Who may ask: programs that mean this machine and have its key, and no site through a browser."""

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response

from unlearn_mlx.sharing.serve.refusals import Refused

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


@dataclass(frozen=True)
class Admission:
    """Beside this machine's own names: hosts and origins that are let in, and the key that all must have."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    api_key: str | None = None


class Gate:
    """Lets requests through to an application, each with its path as the routes know it."""

    def __init__(self, application: Any, admission: Admission) -> None:
        self._application, self._admission = application, admission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let one request through, or refuse it."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin in self._admission.origins:
            send = _with_origin(send, origin or "")
        try:
            self._check(scope, headers)
        except Refused as refusal:
            await refuse(refusal)(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            allowed = PREFLIGHT if origin else {"Allow": "GET, HEAD, POST, OPTIONS"}
            await Response(status_code=204, headers=allowed)(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/") or "/"
        await self._application(scope, receive, send)

    def _check(self, scope: Any, headers: Headers) -> None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        if not self._is_this_machine(host, scope) and host not in self._admission.hosts:
            raise Refused(
                403,
                f"this server does not answer to the name '{host[:80]}': if it is yours, "
                f"start it with '--allow-host {host[:80]}'",
                code="forbidden",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._admission.origins:
            raise Refused(
                403,
                f"pages and apps from '{origin[:80]}' may not ask here: if that is yours, "
                f"start the server with '--allow-origin {origin[:80]}'",
                code="forbidden",
            )
        if scope["method"] not in METHODS:
            raise Refused(501, f"'{scope['method'][:20]}' is not served here", code="not_implemented")
        if scope["method"] != "OPTIONS" and scope["path"].rstrip("/") != "/health":
            self._check_key(headers)

    def _is_this_machine(self, host: str, scope: Any) -> bool:
        """Whether a host means this machine: no site can have a number that is this machine's as its name."""
        if host in LOCAL_NAMES:
            return True
        try:
            number = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return scope.get("server") is not None and str(number) == scope["server"][0]

    def _check_key(self, headers: Headers) -> None:
        key = self._admission.api_key
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(
                401,
                "the key is missing or wrong: send 'Authorization: Bearer KEY' with the one that the "
                "server was started with",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def refuse(refusal: Refused) -> JSONResponse:
    """An answer that tells why there is none."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _with_origin(send: Callable[[Any], Awaitable[None]], origin: str) -> Callable[[Any], Awaitable[None]]:
    """Let a page of this origin read what is sent."""

    async def send_readable(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Vary"] = "Origin"
        await send(message)

    return send_readable
