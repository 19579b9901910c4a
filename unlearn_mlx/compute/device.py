"""What this machine computes with, and what it can hold."""

import platform
from dataclasses import dataclass
from functools import cache

import psutil

from unlearn_mlx.compute.cpu_blas import core_count


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


@cache
def current_device() -> Device:
    """The device that mlx computes on. Imports mlx."""
    import mlx.core as mx

    cores = core_count()
    total = psutil.virtual_memory().total
    if mx.default_device() == mx.Device(mx.cpu):
        return Device("cpu", platform.processor() or platform.machine(), total, cores)
    information = mx.device_info()
    backend = "metal" if mx.metal.is_available() else "cuda"
    # Metal keeps part of the unified memory for the system; mlx reports what it may use.
    memory = int(
        information.get("max_recommended_working_set_size") or information.get("memory_size") or total
    )
    return Device(backend, str(information.get("device_name", backend)), memory, cores)
