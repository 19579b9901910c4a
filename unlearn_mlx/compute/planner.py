"""What a run will take, and how it is computed so that it fits: decided before anything is loaded.

What a machine has is fixed, so the choice is made by that and never by what is free at the moment: the rows
that are computed at once show in the last digits of a sum, and so would in what a run writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from unlearn_mlx.compute.batch_size import BATCH_SIZES
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.footprint import Peak, evaluation_peak, generation_peak, training_peak
from unlearn_mlx.compute.limits import limit
from unlearn_mlx.compute.memory import GIGABYTE, room_of
from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.runs.records import Computation

CPU_PART_ROWS = 5  # half of a usual step: one part for each of two cores
PROCESS_BYTES = int(0.4 * GIGABYTE)  # of a process beside what mlx counts: Python with its libraries
SHARD_BYTES = 5 * GIGABYTE  # of an exported model's files, as mlx-lm cuts them
CONVERSATION_BYTES = 2**29  # of a chat, kept for their next turns: 4,000 tokens of an 8B model


@dataclass(frozen=True)
class Plan:
    """Bytes at the highest point of each part of a run, and how it is computed."""

    weights: int
    generation: Peak
    training: Peak
    evaluation: Peak
    computation: Computation
    is_gpu: bool
    workers: int = 0  # processes beside the run's own, each with the weights for itself
    reasons: tuple[str, ...] = ()  # why it is computed otherwise than on a large machine

    @property
    def memory(self) -> int:
        """The most that one process holds at a time, in bytes, as mlx counts."""
        return self.weights + max(self.generation.total, self.training.total, self.evaluation.total)

    @property
    def process_bytes(self) -> int:
        """What the system sees that one process takes; a GPU's memory is mlx's alone."""
        return self.memory + (0 if self.is_gpu else PROCESS_BYTES)

    @property
    def everywhere(self) -> int:
        """What the run and its workers take together."""
        return self.process_bytes * (1 + self.workers)


def plan(
    shape: ModelShape,
    settings: Settings,
    device: Device,
    workers: int = 0,
    begun: Computation | None = None,
) -> Plan:
    """What a run of this model with these settings takes on a device, computed so that it fits if it can.

    ``begun`` is how it was begun, where it is to go on so.
    """
    number_bytes = 2 if device.is_gpu else 4
    weights = weight_bytes(shape, device)
    room = room_of(device) - weights
    sizes = [begun.decode_batch] if begun else reversed(BATCH_SIZES)
    batches = [(rows, generation_peak(shape, settings, number_bytes, rows)) for rows in sizes]
    decode_batch, generation = next((way for way in batches if way[1].total <= room), batches[-1])
    ways = [
        (rows, again, training_peak(shape, settings, number_bytes, rows, again))
        for rows, again in (
            [(begun.part_rows, begun.checkpointing)] if begun else _ways_to_train(settings, device)
        )
    ]
    part_rows, checkpointing, training = next((way for way in ways if way[2].total <= room), ways[-1])
    reasons = []
    if generation != (usual := batches[0][1]):
        reasons.append(f"answers in smaller batches: the usual ones take {_gb(weights + usual.total)}")
    if training != (usual := ways[0][2]):
        reasons.append(f"training in smaller pieces: the usual step takes {_gb(weights + usual.total)}")
    return Plan(
        weights,
        generation,
        training,
        evaluation_peak(shape),
        Computation(decode_batch=decode_batch, part_rows=part_rows, checkpointing=checkpointing),
        device.is_gpu,
        workers,
        tuple(reasons),
    )


def usual_computation(device: Device) -> Computation:
    """How a run is computed where memory is no matter."""
    part_rows = None if device.is_gpu else CPU_PART_ROWS
    return Computation(decode_batch=max(BATCH_SIZES), part_rows=part_rows, checkpointing=False)


def answering_bytes(shape: ModelShape, device: Device) -> int:
    """What a model takes while it answers a batch of questions."""
    working = generation_peak(shape, make_settings(), 2 if device.is_gpu else 4, min(BATCH_SIZES)).total
    return weight_bytes(shape, device) + working + (0 if device.is_gpu else PROCESS_BYTES)


def export_bytes(shape: ModelShape, device: Device) -> int:
    """What an export takes: one shard in floats beside what it is made of, or the answers afterwards."""
    floats = shape.parameters * 2
    shard = min(floats, SHARD_BYTES)
    made_of = int(shape.file_bytes * shard / floats)
    return max(shard + made_of, answering_bytes(shape, device))


def chat_bytes(shape: ModelShape, device: Device) -> int:
    """What a chat takes: weights, the conversations that are kept, and room to compute in."""
    return answering_bytes(shape, device) + CONVERSATION_BYTES


def weight_bytes(shape: ModelShape, device: Device) -> int:
    """Bytes of a model's weights on a device: as they are on disk, or in float32 on a CPU."""
    return shape.file_bytes if device.is_gpu else shape.parameters * 4


def _ways_to_train(settings: Settings, device: Device) -> Iterator[tuple[int | None, bool]]:
    """Rows at once and gradient checkpointing, from the fastest way to the one that takes least."""
    whole = usual_computation(device).part_rows
    few = (whole or settings.batch_size) // 2
    for checkpointing in (False, True):
        yield whole, checkpointing
        rows = few
        # A GPU has little to do with less than two rows: computing twice is faster.
        while rows >= (1 if checkpointing else 2):
            yield rows, checkpointing
            rows //= 2


def refuse(planned: Plan, name: str, device: Device, free: int) -> None:
    """Say that a run does not fit, before anything of it is loaded.

    Raises:
        EnvironmentCannot: where the device cannot hold it, or has too little of it free.
    """
    room, bound = room_of(device), limit()
    smaller = "" if name == "smollm2" else "take '--model smollm2'"
    if planned.memory > room:
        way_out = smaller or "take a machine that has more"
        raise EnvironmentCannot(
            f"{name} takes {_gb(planned.memory)} in training and {device.name} has {_gb(room)} for it: "
            f"{f'raise the limit ({bound}), or {way_out}' if bound else way_out}"
        )
    if planned.process_bytes > free:
        way_out = f"raise the limit ({bound})" if bound else "close other programs"
        raise EnvironmentCannot(
            f"{name} takes {_gb(planned.process_bytes)} and {_gb(max(0, free))} are free: "
            f"{way_out}{smaller and f', or {smaller}'}"
        )


def _gb(count: int) -> str:
    return f"{count / GIGABYTE:.1f} GB"
