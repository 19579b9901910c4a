"""The addresses, and how each is answered."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unlearn_mlx.errors import UserError
from unlearn_mlx.sharing.serve.asking import Answer, Served, check_served
from unlearn_mlx.sharing.serve.connection import disconnected, impatient
from unlearn_mlx.sharing.serve.gate import Admission, Gate, refuse
from unlearn_mlx.sharing.serve.refusals import RETRY_SECONDS, Refused, refused
from unlearn_mlx.sharing.serve.requests import ChatAsked, CompletionAsked
from unlearn_mlx.sharing.serve.responses import ChatForm, CompletionForm, Form, error_events

LONGEST_REQUEST = 8 * 2**20  # bytes
SLOWEST_WRITER = 60.0  # seconds until a request is whole
SLOWEST_READER = 30.0  # seconds for which a client may read nothing
LONGEST_REST = 10.0  # seconds for which the rest of a request that is too large is read and dropped


def application(served: Served, admission: Admission) -> Gate:
    """The ASGI application."""

    async def chat(request: Request) -> "_Answering":
        asked = ChatAsked.model_validate(await _body(request, served))
        prompts = await served.prompts(asked)
        return _Answering(served.ask(asked, prompts, _client(request)), ChatForm(asked, prompts))

    async def complete(request: Request) -> "_Answering":
        asked = CompletionAsked.model_validate(await _body(request, served))
        prompts = await served.prompts(asked)
        return _Answering(served.ask(asked, prompts, _client(request)), CompletionForm(asked, prompts))

    async def models(request: Request) -> JSONResponse:
        known = [_model(name, served) for name in served.adapters]
        return JSONResponse({"object": "list", "data": known})

    async def model(request: Request) -> JSONResponse:
        return JSONResponse(_model(served.check_name(request.path_params["name"]), served))

    async def health(request: Request) -> JSONResponse:
        if served.engine.is_restarting:
            return JSONResponse({"status": "restarting"}, 503, {"Retry-After": str(RETRY_SECONDS)})
        return JSONResponse({"status": "ok"})

    routes = [
        *(Route(f"{at}/chat/completions", chat, methods=["POST"]) for at in ("/v1", "")),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
    ]
    handlers: Any = dict.fromkeys((Refused, ValidationError, UserError, Exception), _error)
    handlers |= {HTTPException: _no_address, ClientDisconnect: _nobody}
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return Gate(_without_raising(inner), admission)


def _without_raising(inner: Starlette) -> Any:
    """What Starlette answers a failure with is the end of it.

    It raises the failure all the same, at which uvicorn would close the connection without having said
    so, while the client may already ask the next thing on it.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        with suppress(Exception):
            await inner(scope, receive, send)

    return answer


class _Answering(Response):
    """Sends an answer as it comes, or whole; ends it where the client goes away."""

    def __init__(self, answer: Answer, form: Form) -> None:
        super().__init__()
        self._answer, self._form = answer, form

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        send = impatient(scope, send, SLOWEST_READER)
        gone = asyncio.create_task(disconnected(receive))
        work = asyncio.create_task(self._send(scope, receive, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            self._answer.cancel()
            for task in (gone, work):
                task.cancel()

    async def _send(self, scope: Any, receive: Any, send: Any) -> None:
        if self._form.asked.stream:
            await self._send_events(scope, receive, send)
            return
        try:
            response = JSONResponse(await self._form.whole(self._answer))
        except Exception as error:
            response = refuse(refused(error))
        await response(scope, receive, send)

    async def _send_events(self, scope: Any, receive: Any, send: Any) -> None:
        has_begun = False
        try:
            async for event in self._form.events(self._answer):
                if not has_begun:
                    has_begun = True
                    await send(_stream_start())
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            if not has_begun:  # it can still be told by the status
                await refuse(refused(error))(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": error_events(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _TooLarge(Response):
    """A refusal that the client can read: it may read nothing before all of its own request is sent."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = refuse(Refused(413, f"a request has at most {LONGEST_REQUEST} bytes"))
        response.headers["Connection"] = "close"
        start = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        until = time.monotonic() + LONGEST_REST
        try:
            more = True
            while more and (left := until - time.monotonic()) > 0:
                message = await asyncio.wait_for(receive(), left)
                more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(request: Request, served: Served) -> dict[str, Any]:
    """A request's JSON object, of a model that there is.

    Raises:
        Refused: where there is none.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > LONGEST_REQUEST:
        raise _TooMuch
    try:
        data = await asyncio.wait_for(_data(request), SLOWEST_WRITER)
    except TimeoutError:
        raise Refused(408, f"the request was not whole after {SLOWEST_WRITER:.0f} seconds") from None
    try:
        body = from_json(data)
    except ValueError as error:
        raise Refused(400, f"the request is not JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the request is no JSON object")
    if body.get("model") is None:
        raise Refused(400, f"'model' is missing: there are {', '.join(served.adapters)}", "model")
    served.check_name(body["model"])
    check_served(body)
    return body


async def _data(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > LONGEST_REQUEST:
            raise _TooMuch
    return bytes(data)


_TooMuch = Refused(413, "too large")


async def _error(request: Request, error: Exception) -> Response:
    if error is _TooMuch:
        return _TooLarge()
    return refuse(refused(error))


async def _no_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        what = f"'{path}' is not asked by {request.method}"
        return refuse(Refused(405, what, code="method_not_allowed", headers=allowed))
    return refuse(Refused(error.status_code, f"nothing is served at '{path}'", code="not_found"))


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # who asked is gone


def _stream_start() -> dict[str, Any]:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _client(request: Request) -> str:
    """Who asks, as far as turns are concerned: a connection."""
    return f"{request.client.host}:{request.client.port}" if request.client else ""


def _model(name: str, served: Served) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": served.created, "owned_by": "unlearn-mlx"}
