"""A plan in words: what ``--dry-run`` and the faces show before a run is started."""

from collections.abc import Iterable, Mapping

from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.footprint import Peak
from unlearn_mlx.compute.memory import GIGABYTE, kept_bytes
from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.compute.planner import Plan, chat_bytes, export_bytes

PARTS = ("caches", "activations", "optimizer")


def memory_lines(planned: Plan, shape: ModelShape, device: Device) -> list[str]:
    """What a run takes, part by part, how it is computed, and what other commands take afterwards."""
    peaks = {"answers": planned.generation, "training": planned.training, "evaluation": planned.evaluation}
    lines = [
        f"memory   about {_gb(planned.everywhere)} of {device.memory_bytes / GIGABYTE:.0f} GB",
        f"weights  {_gb(planned.weights)} in each process",
        *(f"{name:8s} {_parts(planned, peak)}" for name, peak in peaks.items()),
    ]
    if planned.workers:
        each = _gb(planned.process_bytes)
        lines.append(f"workers  {planned.workers} beside the run's own process, each with about {each}")
    if planned.is_gpu:
        lines.append(f"kept     up to {_gb(kept_bytes(device))} of freed arrays on top")
    way = planned.computation
    at_once = f"{way.part_rows} rows" if way.part_rows else "a step's rows"
    how = "computed twice" if way.checkpointing else "kept"
    lines.append(
        f"chosen   {way.decode_batch} answers at once at the most; in training {at_once} at once, "
        f"activations {how}"
    )
    later = {
        "chat": chat_bytes(shape, device),
        "audit": planned.process_bytes,
        "export": export_bytes(shape, device),
    }
    told = ", ".join(f"{name} {_gb(count)}" for name, count in later.items())
    return [*lines, *(f"because  {reason}" for reason in planned.reasons), f"later    {told}"]


def time_line(seconds: Mapping[str, float]) -> str:
    """How long a run takes, and each of its stages."""
    stages = ", ".join(f"{stage} {each / 60:.1f}" for stage, each in seconds.items())
    return f"time     about {sum(seconds.values()) / 60:.0f} minutes ({stages})"


def plan_line(model_name: str, lines: Iterable[str]) -> str:
    """What a run on a model takes, in a sentence, from the lines of its plan."""
    facts = dict(line.split(maxsplit=1) for line in lines)
    parts = [f"memory {facts['memory']}", facts.get("time", "time known once it is here")]
    if download := facts.get("download", "").partition(":")[0]:
        parts.append(f"fetched first: {download}")
    return f"{model_name}: {'; '.join(parts)}."


def _parts(planned: Plan, peak: Peak) -> str:
    found = [f"{name} {_gb(getattr(peak, name))}" for name in PARTS if getattr(peak, name)]
    return f"{_gb(planned.weights + peak.total)}: weights, {', '.join(found)}"


def _gb(count: float) -> str:
    return f"{count / GIGABYTE:.1f} GB"
