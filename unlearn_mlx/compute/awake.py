"""A Mac that works does not fall asleep."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_awake() -> Iterator[None]:
    """As long as it lasts, a Mac stays awake by macOS's ``caffeinate``; elsewhere nothing is done.

    The display may sleep, and should: where it is lit, macOS ends GPU work that the screen has to wait for.
    The helper ends with this process however that ends.
    """
    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if program is None:
        yield
        return
    helper = subprocess.Popen(
        [program, "-is", "-w", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        helper.terminate()
        helper.wait()
