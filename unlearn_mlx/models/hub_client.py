"""The hub's own client, made fit for a command: it waits for nothing for good, and fails in a line.

By itself it waits without end for a hub that accepts and never answers, asks a hub that cannot be reached
again and again, and ends with a traceback where a proxy needs a package that is not installed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.models.hub_errors import fetch_failure, is_hub_error

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # that the other side may say nothing; the client's own limit for downloads is 10
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


@cache
def prepare_client() -> None:
    """Make the client of this process; once is enough.

    Raises:
        EnvironmentCannot: where the proxy that the surroundings name cannot be used.
    """
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.utils import logging
    from huggingface_hub.utils._http import default_client_factory

    def made() -> Any:
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}
        return client

    set_client_factory(made)
    if not {"HF_HUB_VERBOSITY", "HF_DEBUG"} & os.environ.keys():
        logging.set_verbosity_error()  # each of its retries would be two lines
    try:
        get_session()
    except (ImportError, ValueError) as error:
        raise EnvironmentCannot(_proxy_complaint(error)) from None


def reach(repository: str, revision: str | None = None) -> str:
    """Ask the hub for a repository, once: what is wrong is known before anything is tried again and again.

    Returns the name that it has there, which is another than the one asked for where it was renamed.

    Raises:
        Exception: the hub's client's own, which ``fetch_failure`` puts in words.
    """
    from huggingface_hub import HfApi, constants

    seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
    return str(HfApi().model_info(repository, revision=revision, timeout=seconds).id)


def new_name(repository: str) -> str | None:
    """What a repository is called now, where it was renamed; None where it was not, or nothing is known."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return None
    with hub_failures(repository):
        prepare_client()
        name = reach(repository)
    return name if name != repository else None


@contextmanager
def hub_failures(repository: str, revision: str | None = None, otherwise: str = "") -> Iterator[None]:
    """Say in a line what goes wrong with the hub meanwhile, with another way out than to try again.

    Raises:
        EnvironmentCannot: for every error of the hub, the network or the disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_hub_error(error):
            raise
        # Its chain is cut off: the hub's answer may repeat the token.
        raise fetch_failure(error, repository, revision, otherwise) from None


def _bound(request: Any) -> None:
    """Give a request limits of time where its caller gave none."""
    given = request.extensions.get("timeout") or {}
    usual = {"connect": CONNECT_SECONDS, "pool": CONNECT_SECONDS}
    usual |= {"read": SILENT_SECONDS, "write": SILENT_SECONDS}
    told = {kind: limit for kind, limit in given.items() if limit is not None}
    request.extensions["timeout"] = {**usual, **told}


def _proxy_complaint(error: Exception) -> str:
    named = [name for name in os.environ if name.upper() in PROXIES and os.environ[name]]
    where = " and ".join(sorted(named)) or "the system's network settings"
    name, them = ("names", "it") if len(named) == 1 else ("name", "them")
    if isinstance(error, ImportError):
        return (
            f"{where} {name} a SOCKS proxy, which the hub's client needs a package for: "
            f"'uv pip install socksio' (or 'pip install socksio'), or unset {them}"
        )
    return f"{where} {name} no proxy that can be used: mend {them} (http://HOST:PORT), or unset {them}"
