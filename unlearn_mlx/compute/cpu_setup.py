"""What makes mlx's CPU backend fast, done once by whoever starts a process: ``prepare_cpu()``."""

import ctypes
import os
import sys

from unlearn_mlx.compute.cpu_blas import load_fast_blas

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

# Bits of x86's MXCSR.
_FLUSH_RESULTS, _FLUSH_OPERANDS = 0x8000, 0x0040


def prepare_cpu() -> bool:
    """Set this process up for computing on a CPU; to be called before ``mlx.core`` is imported.

    Returns whether mlx's products are OpenBLAS's: False where mlx was imported before, which cannot be
    made up for, and where there is none (macOS needs none). A second call does no harm, and prepares the
    thread that makes it.
    """
    flush_subnormals()
    keep_freed_memory()
    return load_fast_blas()


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of returning them to the system (Linux).

    mlx's CPU backend frees every intermediate result, and the page faults of getting the memory
    back take longer than the arithmetic: a training step goes from 3.0 s to 2.0 s.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 256 * 2**20)
        mallopt(_M_ARENA_MAX, 1)


def flush_subnormals() -> None:
    """Have this thread, and those it starts, take numbers under 1e-38 for zero (Linux on x86).

    The backward pass meets many of them, and a processor that handles each by microcode takes seven
    times as long over a training step (23 instead of 3 seconds). Sums lose nothing that float32 keeps.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return
    library = ctypes.CDLL(None)
    environment = (ctypes.c_uint32 * 8)()  # fenv_t: seven words of the old unit, then MXCSR
    if library.fegetenv(environment) == 0:
        environment[7] |= _FLUSH_RESULTS | _FLUSH_OPERANDS
        library.fesetenv(environment)
