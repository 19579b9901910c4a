"""Which model and which preset a machine gets: for this one, and for Macs of several sizes."""

from dataclasses import dataclass

from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import GIGABYTE, mac_memory
from unlearn_mlx.compute.planner import Plan
from unlearn_mlx.models.registry import NAMED_MODELS, default_model, memory_plan

MACS = (8, 16, 24, 32, 64)  # gigabytes


@dataclass(frozen=True)
class Mac:
    """What a Mac of a size is given by default."""

    gigabytes: int
    granted: int  # bytes that macOS lets the GPU keep
    model: str
    planned: Plan
    preset: str

    def line(self) -> str:
        """As ``unlearn doctor`` says it."""
        memory, granted = (count / GIGABYTE for count in (self.planned.memory, self.granted))
        return (
            f"on a Mac of {self.gigabytes:2d} GB: {self.model}, {memory:.1f} of {granted:.1f} GB, "
            f"--preset {self.preset}"
        )


def macs() -> list[Mac]:
    """Macs of several sizes, the smallest first. None of it was measured on one."""
    rows = []
    for gigabytes in MACS:
        device = Device("metal", "Mac", mac_memory(gigabytes), 8)
        name, _ = default_model(device)
        planned = memory_plan(NAMED_MODELS[name], device)
        rows.append(Mac(gigabytes, device.memory_bytes, name, planned, preset_for(planned, device)))
    return rows


def preset_for(planned: Plan, device: Device) -> str:
    """The preset for a machine: "thorough" where half of its memory is enough, else "standard".

    The longer run is for machines that stay usable beside it.
    """
    return "thorough" if planned.memory <= device.memory_bytes / 2 else "standard"
