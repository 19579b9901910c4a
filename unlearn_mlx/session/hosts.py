"""The hosts that share a run: the file that ``mlx.distributed_config`` writes, and starting a rank on each.

This process's own child is rank 0, on the first host, which is this machine. The others are started by ssh,
and on this machine without it.
"""

import itertools
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from unlearn_mlx.compute.meeting import AGAIN, COORDINATOR, DEVICES, HOST_FILE, KEY, RANK, excuse
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.runs.records import Record, checked
from unlearn_mlx.text.printable import one_line

PORT = 32323  # mlx.launch's first; each address of a host takes the next
FIRST_PORT = "UNLEARN_RING_PORT"  # decides instead where the user has set it
MODULE = "unlearn_mlx.compute.group"  # what a rank runs
HERE = ("127.0.0.1", "localhost")
SECONDS_TO_END = 5
WAY_OUT = "write it with 'mlx.distributed_config'"


class Host(Record):
    """One host: how ssh reaches it, and how the ring does."""

    ssh: Annotated[str, Field(min_length=1, pattern="^[^-]")]  # ssh would take it for an option
    ips: list[str]
    rdma: list[str | list[str] | None] = Field(default_factory=list)


class Hosts(Record):
    """A host file. ``envs`` are variables of the environment, as NAME=VALUE."""

    backend: str = "ring"
    envs: list[Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*=")]] = Field(default_factory=list)
    hosts: Annotated[list[Host], Field(min_length=2)]


def read_hosts(path: Path) -> Hosts:
    """The hosts of a file.

    Raises:
        UserError: where it is missing or damaged, or for a backend that has no ranks on several hosts.
    """
    value = read_json(path)
    hosts = checked(Hosts, {"hosts": value} if isinstance(value, list) else value, str(path), WAY_OUT)
    backend = hosts.backend or "ring"
    if backend not in ("ring", "jaccl", "jaccl-ring"):
        raise UserError(f"{path}: '{one_line(backend)[:40]}' is no backend for it, 'ring' and 'jaccl' are")
    for host in hosts.hosts:
        if not host.ips or not all(map(_is_address, host.ips)):
            raise UserError(f"{path}: {one_line(host.ssh)[:80]} has no IPv4 address in 'ips'; {WAY_OUT}")
    return hosts


def _is_address(text: str) -> bool:
    try:
        return socket.inet_pton(socket.AF_INET, text) != b""
    except (OSError, ValueError):
        return False


class OtherRanks:
    """The ranks that were started here. One that ends before it comes is excused to rank 0."""

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._address, self._key = address, key
        self._is_over = threading.Event()

    def add(self, rank: int, host: Host, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
        """Take care of the process that is a rank; ``said`` is where its standard error goes."""
        self.processes.append(process)
        threading.Thread(target=self._excuse, args=(rank, host, process, said), daemon=True).start()

    def end(self) -> None:
        """Wait for all of them, and end those that do not."""
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
            process.kill()
            process.wait()
        self._is_over.set()

    def _excuse(self, rank: int, host: Host, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
        if not (code := process.wait()):
            return
        with suppress(ValueError):  # closed, where all is over
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with code {code}"
            while not excuse(self._address, self._key, rank, host.ssh, reason):
                if self._is_over.wait(AGAIN):
                    return


@contextmanager
def started_ranks(hosts: Hosts) -> Iterator[OtherRanks]:
    """All ranks but the first, which this process's environment makes of it, or of a child that it starts."""
    places = _places(hosts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unlearn-ranks-")))
        variables = dict(entry.split("=", 1) for entry in hosts.envs)
        variables[KEY] = secrets.token_hex(16)
        ranks = OtherRanks(places[0][0], variables[KEY])
        if hosts.backend.startswith("jaccl"):
            name, content = DEVICES, json.dumps([host.rdma for host in hosts.hosts])
            variables[COORDINATOR] = "{}:{}".format(*places[0][0])
            if hosts.backend == "jaccl-ring":
                variables["MLX_JACCL_RING"] = "1"
        else:
            name, content = HOST_FILE, json.dumps([[f"{ip}:{port}" for ip, port in each] for each in places])
        file = folder / "hosts.json"
        file.write_text(content, encoding="utf-8")
        stack.callback(ranks.end)
        for number, host in enumerate(hosts.hosts[1:], start=1):
            said = stack.enter_context(tempfile.TemporaryFile())
            own = {**variables, RANK: str(number)}
            if host.ssh in HERE:
                process = _started_here({**own, name: str(file)}, said)
            else:
                process = _started_there(host, own, name, content, said)
            ranks.add(number, host, process, said)
        before = dict(os.environ)
        os.environ.update({**variables, RANK: "0", name: str(file)})
        try:
            yield ranks
        finally:
            os.environ.clear()
            os.environ.update(before)


def _places(hosts: Hosts) -> list[list[tuple[str, int]]]:
    """Every rank's addresses: with the ports that mlx.launch takes, or free ones where all ranks are here."""
    chosen = os.environ.get(FIRST_PORT, "")
    ports = itertools.count(int(chosen) if chosen.isdecimal() else PORT)
    with ExitStack() as stack:  # a free port is held until all are found

        def port_at(ip: str) -> int:
            if any(host.ssh not in HERE for host in hosts.hosts):
                return next(ports)
            asked = stack.enter_context(socket.socket())
            asked.bind((ip, 0))
            return int(asked.getsockname()[1])

        return [[(ip, port_at(ip)) for ip in host.ips] for host in hosts.hosts]


def _started_here(variables: dict[str, str], said: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env={**os.environ, **variables},
        start_new_session=True,  # a Ctrl-C of the terminal is rank 0's to handle
    )


def _started_there(
    host: Host, variables: dict[str, str], name: str, content: str, said: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """A rank started by ssh, in the same place. What it is told is written to a shell: no list of processes
    shows it."""
    process = subprocess.Popen(
        ["ssh", "-o", "BatchMode=yes", host.ssh, "/bin/sh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(OSError), process.stdin as shell:
        shell.write(_script([sys.executable, "-m", MODULE], Path.cwd(), variables, name, content).encode())
    return process


def _script(words: Sequence[str], place: Path, variables: dict[str, str], name: str, content: str) -> str:
    """What a shell on another host does to be a rank: the environment, the list of hosts, the command."""
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())
    return (
        f"cd {shlex.quote(str(place))} 2>/dev/null\n"
        f"umask 077; hosts=$(mktemp) || exit 1; trap 'rm -f \"$hosts\"' EXIT\n"
        f'printf %s {shlex.quote(content)} >"$hosts"; export {name}="$hosts"\n'
        f"{exports}{shlex.join(words)} </dev/null\n"
    )
