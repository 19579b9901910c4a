"""The one place for memory: how much there is, what of it a model may have and keep, the highest point."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.limits import available_bytes, limit

GIGABYTE = 1024**3
KEPT_SHARE = 8  # freed arrays may take one part in so many of what a device grants
SMALLER_PLAN = "make a new run of a smaller plan: --batch-size 2, or --model smollm2, and --out"


def room_of(device: Device) -> int:
    """Bytes that arrays may take on a device, beside what is kept of freed ones."""
    return device.memory_bytes - kept_bytes(device)


def kept_bytes(device: Device) -> int:
    """Bytes that mlx may keep of freed arrays on a device."""
    return device.memory_bytes // KEPT_SHARE


def free_bytes() -> int:
    """Bytes that arrays may still take on this machine's device, as it stands."""
    import mlx.core as mx

    device = current_device()
    if not device.is_gpu:
        return available_bytes()
    granted = device.memory_bytes - mx.get_active_memory()
    # What other programs have of a card is theirs; unified memory is the system's to make room in.
    free = mx.device_info().get("free_memory") if device.backend == "cuda" else None
    return granted if free is None else min(granted, int(free) + mx.get_cache_memory())


def out_of_memory(needed: int) -> str:
    """What is told where memory ran out: what a run takes (0: nobody knows), what is free, the way out."""
    bound = limit()
    takes = f"it takes about {needed / GIGABYTE:.1f} GB, and " if needed else ""
    free = f"{max(0, available_bytes()) / GIGABYTE:.1f} GB are free now"
    room = f"raise the limit ({bound})" if bound else "close other programs"
    return f"{takes}{free}; {room} and go on, or {SMALLER_PLAN}"


def bound_cache() -> None:
    """Bound what mlx keeps of freed arrays on a GPU.

    Batches of many padded lengths free arrays of many sizes; unbounded they pile up until the model
    itself has no room, and Metal ends the process. A CPU's are bounded by the allocator.
    """
    import mlx.core as mx

    device = current_device()
    if device.is_gpu:
        mx.set_cache_limit(kept_bytes(device))


def give_back() -> None:
    """Give the system back what was freed, for another process to use."""
    import mlx.core as mx

    gc.collect()  # a model's parts name each other
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none
        trim(0)


@contextmanager
def wired() -> Iterator[None]:
    """As long as a model works, let Metal keep all that it grants resident; put back afterwards.

    The system pages out and compresses what is not wired, and a model's weights are read whole for every
    token. mlx-lm's ``wired_limit`` does the same.
    """
    import mlx.core as mx

    device = current_device()
    if device.backend != "metal":
        yield
        return
    before = mx.set_wired_limit(device.memory_bytes)
    try:
        yield
    finally:
        # The limit must not change while anything is computed.
        mx.synchronize()
        mx.set_wired_limit(before)


def memory_facts() -> dict[str, int]:
    """mlx's bytes in this process, as events say them: at the highest point, and kept of freed arrays."""
    import mlx.core as mx

    granted = current_device().memory_bytes
    return {"memory": peak_bytes(), "cache": int(mx.get_cache_memory()), "granted": granted}


def peak_bytes() -> int:
    """The most bytes that mlx has held at a time in this process, since it began or was reset."""
    import mlx.core as mx

    return int(mx.get_peak_memory())


def reset_peak() -> None:
    """Count the peak from now on, without memory that is kept for reuse."""
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()


def mac_memory(gigabytes: int) -> int:
    """About what macOS lets the GPU keep, in bytes: two thirds, and three quarters from 36 GB on."""
    return int(gigabytes * GIGABYTE * (3 / 4 if gigabytes >= 36 else 2 / 3))
