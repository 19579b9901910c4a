"""`unlearn` commands beside the app, in a process of their own: no key waits for them."""

import asyncio
import sys
from contextlib import suppress

import psutil

from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.session.processes import BEHIND


async def run_command(*words: str) -> str:
    """What a command prints; where this is cancelled, the process is killed.

    Raises:
        EnvironmentCannot: with the last line of its errors, where it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "unlearn_mlx.cli", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with suppress(psutil.Error):
        psutil.Process(process.pid).nice(BEHIND)
    try:
        printed, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = complained.decode("utf-8", "replace").strip().splitlines()
        raise EnvironmentCannot(lines[-1] if lines else f"'unlearn {words[0]}' failed")
    return printed.decode("utf-8", "replace")
