"""What a client is told where there is no answer, in the form that OpenAI's clients read."""

from typing import Any

from pydantic import ValidationError

from unlearn_mlx.errors import AskAgain, Cancelled, UserError

RETRY_SECONDS = 5  # after which a client that found no room may ask again


class Refused(Exception):
    """A request that is answered with an error. ``param`` names the field whose fault it is."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str = "invalid_request",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


def refused(error: BaseException) -> Refused:
    """What a client hears of an error: of its own request, or of its answer."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, Cancelled):
        return busy(503, "the server is closing: ask again later", "closing")
    if isinstance(error, AskAgain):
        return busy(503, str(error), "not_ready")
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Refused(500, f"the answer failed: {reason[:500]}", code="server_error")


def busy(status: int, message: str, code: str) -> Refused:
    """A refusal that ends by itself."""
    return Refused(status, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def too_long(tokens: str, context: int, param: str) -> Refused:
    """A prompt beyond the model's context."""
    message = f"the model's context is {context} tokens, and the prompt has {tokens}: shorten '{param}'"
    return Refused(400, message, param, "context_length_exceeded")


def _invalid(error: ValidationError) -> Refused:
    """The first fault of a request, with the field where it lies."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        message = "is missing"
    return Refused(400, f"'{place}' {_lowered(message)}" if place else message, place or None)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
