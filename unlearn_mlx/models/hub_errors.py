"""What went wrong with the hub, in a line that says what to do and never repeats the token."""

import re
from collections.abc import Mapping

from unlearn_mlx.errors import EnvironmentCannot

RANGE_NOT_SATISFIABLE = 416  # HTTP: what is asked for begins behind the file's end

_REASONS = {
    401: "the hub does not know you: run 'hf auth login', or set HF_TOKEN to a token that is still good",
    413: "the hub finds a file too large",
    429: "the hub asks to wait, too many requests: run the same command again in some minutes",
}


def is_hub_error(error: Exception) -> bool:
    """Whether an error means that the hub, the network or the disk failed, not that a program is wrong.

    The hub's client lets the errors of its network library through, and has changed that library once.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    library = type(error).__module__.split(".")[0]
    return isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError)) or library in (
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


def fetch_failure(
    error: Exception, repository: str, revision: str | None = None, otherwise: str = ""
) -> EnvironmentCannot:
    """What keeps a repository from being fetched, and the way out; ``otherwise`` is another one."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return EnvironmentCannot(
            f"{repository} asks you to accept its licence first: do so on its page, then 'hf auth login'"
        )
    if isinstance(error, RevisionNotFoundError):
        return EnvironmentCannot(f"{repository} has no revision {revision}: update unlearn-mlx")
    # The hub says this to nobody in particular too, where the token is at fault.
    if isinstance(error, RepositoryNotFoundError) and hub_status(error) == 404:
        return EnvironmentCannot(
            f"the hub has no {repository}, or you may not see it: check the name, or 'hf auth login'"
        )
    own = {
        403: f"you may not read {repository}: ask for it on its page, then 'hf auth login'",
        404: "the hub has no such file or repository, or you may not see it: check the name",
        RANGE_NOT_SATISFIABLE: "what was left of a download did not fit: run the same command again",
    }
    reason = hub_reason(error, own)
    if reason is not None:
        return EnvironmentCannot(f"cannot fetch {repository}: {reason}")
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set and it is not in the cache; unset it"
    elif kind := _kind_of_silence(error):
        reason = f"{kind}, and there is no whole copy in the cache; run it again with a network"
    else:
        reason = f"{hub_words(error)}; run it again to go on"
    return EnvironmentCannot(f"cannot fetch {repository}: {reason}{otherwise}")


def _kind_of_silence(error: BaseException) -> str:
    """Why the hub was not heard; empty where it was, or the network broke off amid an answer."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        kind = type(cause).__name__
        if kind == "ProxyError":
            return "the proxy refuses"
        if kind in ("ConnectTimeout", "ReadTimeout"):
            return "the hub does not answer"
        if kind == "ConnectError":
            return f"the hub cannot be reached ({hub_words(cause)})"
        cause = cause.__cause__ or cause.__context__
    return "no network" if isinstance(error, LocalEntryNotFoundError) else ""


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
