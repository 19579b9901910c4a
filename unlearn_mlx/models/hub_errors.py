"""What went wrong with the hub, in a line that says what to do and never repeats the token."""

import re
from collections.abc import Mapping

_REASONS = {
    401: "the hub does not know you: run 'hf auth login', or set HF_TOKEN to a token that is still good",
    413: "the hub finds a file too large",
    429: "the hub asks to wait, too many requests: run the same command again in some minutes",
}


def is_hub_error(error: Exception) -> bool:
    """Whether an error means that the hub, the network or the disk failed, not that a program is wrong.

    The hub's client lets the errors of its network library through, and has changed that library once.
    """
    from huggingface_hub.errors import HfHubHTTPError

    library = type(error).__module__.split(".")[0]
    return isinstance(error, (HfHubHTTPError, OSError, ValueError)) or library in (
        "httpx",
        "httpx2",
        "hf_xet",
    )


def hub_status(error: BaseException) -> int | None:
    """The status that the hub answered with; None where it did not answer.

    The client hides it behind "not in the cache" where it looked there instead.
    """
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        cause = cause.__cause__ or cause.__context__
    return None


def hub_reason(error: BaseException, own: Mapping[int, str]) -> str | None:
    """What a refusal means and what to do; None for an error that is none.

    ``own`` has the words for statuses that mean something else to each command.
    """
    status = hub_status(error)
    if status is None:
        return None
    if status >= 500:
        return f"the hub has trouble (error {status}): run the same command again later"
    return {**_REASONS, **own}.get(status)


def hub_words(error: BaseException) -> str:
    """An error in its own words, on one line, without the token."""
    return " ".join(without_secrets(str(error)).split())[:200]


def without_secrets(text: str) -> str:
    """A message without the token, in whatever form the hub's answer repeats it."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "***")
    return re.sub(r"hf_\w{8,}|(?i:bearer)\s+\S+", "***", text)
