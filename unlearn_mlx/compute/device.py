"""What this machine computes with, and what it can hold."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from unlearn_mlx.compute.cpu_blas import core_count
from unlearn_mlx.compute.limits import total_bytes


@dataclass(frozen=True)
class Device:
    """One compute device. ``memory_bytes`` is what a model may take on it."""

    backend: str  # "metal", "cuda" or "cpu"
    name: str
    memory_bytes: int
    cores: int

    @property
    def is_gpu(self) -> bool:
        """Whether weights stay quantized here (a CPU computes faster on float32)."""
        return self.backend != "cpu"

    @property
    def label(self) -> str:
        """Backend and name, as a manifest says them."""
        return f"{self.backend}: {self.name}"


@cache
def current_device() -> Device:
    """The device that mlx computes on. Imports mlx."""
    import mlx.core as mx

    cores = core_count()
    total = total_bytes()
    if mx.default_device() == mx.Device(mx.cpu):
        return Device("cpu", platform.processor() or platform.machine(), total, cores)
    return gpu_device(mx.device_info(), mx.metal.is_available(), total, cores)


def gpu_device(information: Mapping[str, str | int], is_metal: bool, total: int, cores: int) -> Device:
    """A GPU by what ``mx.device_info`` tells of it, on a machine with so many bytes in ``total``."""
    backend = "metal" if is_metal else "cuda"
    # Metal keeps part of the unified memory for the system; CUDA's is the card's own, and has other keys.
    keys = ("max_recommended_working_set_size", "memory_size") if is_metal else ("total_memory",)
    memory = next((int(information[key]) for key in keys if information.get(key)), total)
    return Device(backend, str(information.get("device_name", backend)), memory, cores)
