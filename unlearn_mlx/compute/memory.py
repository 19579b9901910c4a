"""How much memory there is, what of it mlx may keep, and the highest point so far."""

import psutil

from unlearn_mlx.compute.device import current_device

GIGABYTE = 1024**3
KEPT_SHARE = 8  # freed arrays may take one part in so many of what a GPU grants


def free_bytes() -> int:
    """Bytes that arrays may still take on this machine's device."""
    import mlx.core as mx

    device = current_device()
    if device.is_gpu:
        return device.memory_bytes - mx.get_active_memory()
    return int(psutil.virtual_memory().available)


def bound_cache() -> None:
    """Bound what mlx keeps of freed arrays on a GPU.

    Batches of many padded lengths free arrays of many sizes; unbounded they pile up until the model
    itself has no room, and Metal ends the process. A CPU's are bounded by the allocator.
    """
    import mlx.core as mx

    device = current_device()
    if device.is_gpu:
        mx.set_cache_limit(device.memory_bytes // KEPT_SHARE)


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
