"""Where the ranks of an ``mx.distributed`` group meet, and who of them is let in.

mlx's own group waits without an end, and without hearing a signal, for a rank that never comes, and takes
whoever comes. So all ranks first come to rank 0, at the address that mlx will use, and say what they are.
"""

import hmac
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.errors import Cancelled, EnvironmentCannot
from unlearn_mlx.runs.run import package_versions
from unlearn_mlx.text.printable import one_line

# As mlx reads them.
RANK, HOST_FILE = "MLX_RANK", "MLX_HOSTFILE"
COORDINATOR, DEVICES = "MLX_JACCL_COORDINATOR", "MLX_IBV_DEVICES"
KEY = "UNLEARN_GROUP_KEY"  # which all ranks know, and nobody else where ``session/hosts.py`` starts them

SECONDS_TO_MEET = 60.0
SECONDS_TO_SPEAK = 5  # for somebody who has come
SECONDS_TO_JOIN = 60  # mlx's group, once all are there
LONGEST_WORDS = 2**16  # bytes
AGAIN = 0.2  # seconds until who waits looks again

KEPT = "what was finished is kept, and the same command goes on, with any number of hosts"


class RankLost(EnvironmentCannot):
    """A rank is gone, or is none that can take part: the run stops."""


@dataclass(frozen=True)
class Place:
    """This process's place in a group. ``address`` is where all meet."""

    rank: int
    size: int
    address: tuple[str, int]


@dataclass(frozen=True)
class Attendant:
    """A rank that has come, its name for messages, and the connection to it."""

    rank: int
    name: str
    connection: Connection


def place_in_group() -> Place | None:
    """This process's place, as whoever started it has told mlx; None where it stands alone.

    Raises:
        EnvironmentCannot: where that makes no sense.
    """
    listed = os.environ.get(HOST_FILE) or os.environ.get(DEVICES)
    if not listed or not os.environ.get(RANK):
        return None
    try:
        text = Path(listed).read_text(encoding="utf-8")
        hosts = json.loads(text) if text.strip() else []
        if len(hosts) < 2:
            return None
        name, port = (os.environ.get(COORDINATOR) or hosts[0][0]).rsplit(":", 1)
        return Place(int(os.environ[RANK]), len(hosts), (name, int(port)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EnvironmentCannot(
            f"{listed} does not say where the ranks are ({one_line(str(error))[:80]}): start them again with "
            "'--hosts FILE'"
        ) from None


def meet(
    place: Place, is_cancelled: Callable[[], bool] = lambda: False, seconds: float = SECONDS_TO_MEET
) -> list[Attendant]:
    """Wait, as rank 0, until all others have come and are as this one is, and join mlx's group with them.

    Raises:
        Cancelled: once ``is_cancelled`` returns True.
        RankLost: where one does not come within so many seconds, or has other versions.
        EnvironmentCannot: where nobody can come to this machine.
    """
    found: dict[int, Attendant] = {}
    deadline = time.monotonic() + seconds
    with _listening(place) as listener:
        listener.settimeout(AGAIN)
        while len(found) < place.size - 1:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                if is_cancelled():
                    raise Cancelled("the wait for the ranks") from None
                if time.monotonic() < deadline:
                    continue
                missing = ", ".join(str(number) for number in range(1, place.size) if number not in found)
                raise RankLost(
                    f"rank {missing} did not come to {place.address[0]}:{place.address[1]} within "
                    f"{seconds:.0f} seconds: see that unlearn starts on its host and reaches this one; {KEPT}"
                ) from None
            accepted.setblocking(True)  # a listener's time limit is its connections' too
            if attendant := _attendant(place, Connection(accepted.detach())):
                found[attendant.rank] = attendant
    for attendant in found.values():  # nobody listens at the address any longer: it is mlx's now
        _say(attendant.connection)
    _join()
    return [found[number] for number in sorted(found)]


def attend(place: Place) -> Connection:
    """Go, as another rank, to rank 0 as soon as it is there, and join mlx's group with all.

    Raises:
        RankLost: where this one is refused, or rank 0 is gone.
    """
    connection = _connected(place)
    _say(connection, rank=place.rank, host=socket.gethostname(), facts=_facts())
    answer = _heard(connection, None)
    if refused := answer.get("refused"):
        raise RankLost(one_line(str(refused))[:300])
    if not answer:
        raise RankLost(f"rank 0 is gone: {KEPT}")
    _join()
    return connection


def excuse(address: tuple[str, int], key: str, rank: int, host: str, reason: str) -> bool:
    """Say to rank 0, in the place of a rank, why that cannot come. Returns whether anybody was there."""
    try:
        connected = socket.create_connection(address, SECONDS_TO_SPEAK)
    except OSError:
        return False
    connected.setblocking(True)
    with Connection(connected.detach()) as connection:
        _say(connection, key=key, rank=rank, host=host, cannot=reason)
    return True


def has_ended(connection: Connection) -> bool:
    """Whether whoever is behind a connection is gone, and has left nothing to be read."""
    try:
        with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as asked:
            return not asked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listening(place: Place) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":  # where mlx could not listen at the address beside what we have accepted
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(place.address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise EnvironmentCannot(
            f"the ranks cannot meet at {place.address[0]}:{place.address[1]} ({error.strerror or error}): "
            "the first host of the host file must be this machine, and no other run may be at the address"
        ) from None
    return listener


def _connected(place: Place) -> Connection:
    """A connection to rank 0; for as long as it is not there, whoever started this process waits for it."""
    parent = os.getppid()
    while True:
        try:
            connected = socket.create_connection(place.address, SECONDS_TO_SPEAK)
        except OSError as error:
            if os.getppid() != parent:
                raise RankLost(f"rank 0 never came ({error.strerror or error}): {KEPT}") from None
            time.sleep(AGAIN)
            continue
        connected.setblocking(True)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(connected.detach())


def _attendant(place: Place, connection: Connection) -> Attendant | None:
    """Who has come; None where it is none of the group.

    Raises:
        RankLost: where it is one that cannot take part.
    """
    greeting = _heard(connection, SECONDS_TO_SPEAK)
    rank = greeting.get("rank")
    if type(rank) is not int or not 0 < rank < place.size:
        connection.close()
        return None
    name = f"rank {rank} ({one_line(str(greeting.get('host')))[:80]})"
    if reason := greeting.get("cannot"):
        connection.close()
        raise RankLost(f"{name} cannot come: {one_line(str(reason))[:200]}; {KEPT}")
    if difference := _difference(greeting.get("facts")):
        _say(connection, refused=f"{name} {difference}")
        connection.close()
        raise RankLost(f"{name} {difference}: install the same on all hosts, or leave this one out")
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as asked:
        asked.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Attendant(rank, name, connection)


def _facts() -> dict[str, str]:
    """What must be the same everywhere for the answers to be."""
    return {**package_versions(), "backend": current_device().backend}


def _difference(facts: Any) -> str:
    """In what a rank with such facts differs from this one; empty where it does not."""
    theirs = facts if isinstance(facts, dict) else {}
    for name, ours in _facts().items():
        if theirs.get(name) != ours:
            return f"has {name} {one_line(str(theirs.get(name)))[:40]} and rank 0 has {ours}"
    return ""


def _say(connection: Connection, **words: Any) -> None:
    with suppress(OSError):
        connection.send_bytes(json.dumps({"key": os.environ.get(KEY, ""), **words}).encode())


def _heard(connection: Connection, seconds: float | None) -> dict[str, Any]:
    """What somebody says who knows the key; nothing of anybody else."""
    try:
        if connection.poll(seconds):
            words = json.loads(connection.recv_bytes(LONGEST_WORDS))
            if isinstance(words, dict) and hmac.compare_digest(str(words["key"]), os.environ.get(KEY, "")):
                return words
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        pass
    return {}


def _join() -> None:
    """Make mlx's group, for which every rank is there by now.

    Meanwhile no handler of a signal is called, and the wait for a rank that was killed just now has no end:
    signals end the process as if it had none, and an alarm does after a while.
    """
    import mlx.core as mx

    numbers = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    signal.alarm(SECONDS_TO_JOIN)
    try:
        mx.distributed.init(strict=True, backend="jaccl" if os.environ.get(COORDINATOR) else "ring")
    except RuntimeError as error:
        raise RankLost(f"mlx cannot join the ranks ({one_line(str(error))[:200]}): {KEPT}") from None
    finally:
        signal.alarm(0)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
