"""Training rows as token batches of a few lengths, in an order that the seed alone decides."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.runs.records import NegativeRow, TrainingRow
from unlearn_mlx.seeding import random_source

LENGTH_STEP = 4  # tokens; rows are padded to a multiple, so that shapes come again
TARGET_STEP = 16  # likewise for the number of targets of a batch
TOP = 64  # of the base's probabilities kept for the divergence; the rest is one bucket


# What a row's targets are for: guarded answers to be learned, answers on everything else to be kept,
# and the telling words of the base's own answers on the topic, to become unlikely.
PARTS = ("forget", "retain", "negative")


@dataclass(frozen=True)
class Row:
    """One row's token ids, and the positions whose token is to be learned (or made unlikely)."""

    tokens: list[int]
    targets: list[int]
    part: str  # one of PARTS


@dataclass
class ReferenceTopK:
    """What the base says at a row's targets: its likeliest next tokens, and how likely the target is."""

    ids: np.ndarray  # [targets, TOP]
    log_probabilities: np.ndarray  # [targets, TOP]
    of_target: np.ndarray  # [targets], log-probabilities


class BatchShape(NamedTuple):
    """What a batch is padded to. The arrays of one shape are computed by one compiled step."""

    width: int  # tokens of a row, behind the prefix
    targets: int
    rows: int


@dataclass
class Batch:
    """Rows padded to one length, and where their targets are."""

    prefix: mx.array  # [length]: what all rows start with; the rows go on from there
    tokens: mx.array  # [rows, length]
    places: mx.array  # [targets, 2]: row and position whose output predicts the target
    targets: mx.array  # [targets]
    forget: mx.array  # [targets], 1 where a forget row's target is, else 0
    retain: mx.array  # [targets]
    negative: mx.array  # [targets]
    top_ids: mx.array  # [targets, TOP]
    top_log_probabilities: mx.array  # [targets, TOP]
    base_log_probabilities: mx.array  # [targets], of the target itself
    part_sizes: mx.array  # [PARTS]: how many targets each part has in the whole step


def make_row(model: ChatModel, entry: TrainingRow) -> Row:
    """Tokens of a dataset row. An incomplete answer's end is no target."""
    tokens, start = model.conversation_tokens(entry.chat)
    end = len(tokens) if entry.complete else len(tokens) - 1
    return Row(tokens, list(range(start, end)), entry.part)


def negative_row(model: ChatModel, entry: NegativeRow) -> Row:
    """Tokens of the base's own answer, those of its telling words as targets."""
    *asked, answer = entry.chat
    prompt = model.chat_tokens(asked)
    tokens = model.text_tokens(answer["content"])
    ends = [len(model.text_of(tokens[: count + 1])) for count in range(len(tokens))]
    targets = [
        len(prompt) + number
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
        if any(begin < last and first < end for first, last in entry.target_spans)
    ]
    # What comes after the last target is of no use.
    row = [*prompt, *tokens]
    return Row(row[: targets[-1] + 1] if targets else row, targets, "negative")


def prefix_of(model: ChatModel, rows: Iterable[Row]) -> list[int]:
    """What all rows start with, before any target, where it is to be computed once for all of them.

    Not on a GPU: a prefix of a few tokens is another pass over all weights, there and back, which takes
    longer than the tokens that it saves, and whole rows have mlx's own kernel for attention.
    """
    if not model.sees_prefixes or current_device().is_gpu:
        return []
    return common_prefix([row.tokens[: row.targets[0]] for row in rows if row.targets])


def batch_order(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of row indices for one epoch.

    Rows of about the same length come together; each batch keeps the mix of the parts,
    and the batches come in random order.
    """
    source = random_source(seed, f"epoch/{epoch}")
    parts = [[i for i, row in enumerate(rows) if row.part == part] for part in PARTS]
    ordered = []
    for part in parts:
        jitter = source.normal(0, 2, len(part))
        lengths = np.array([len(rows[i].tokens) for i in part]) + jitter
        ordered.append([part[k] for k in np.argsort(lengths, kind="stable")])
    count = max(1, round(len(rows) / batch_size))
    batches = [
        [index for part in ordered for index in part[len(part) * b // count : len(part) * (b + 1) // count]]
        for b in range(count)
    ]
    source.shuffle(batches)
    return [batch for batch in batches if batch]


def part_sizes(rows: Iterable[Row]) -> list[int]:
    """How many targets each of PARTS has."""
    rows = list(rows)
    return [sum(len(row.targets) for row in rows if row.part == part) for part in PARTS]


def shape_of(rows: Sequence[Row], prefix: Sequence[int] = ()) -> BatchShape:
    """The least that a batch of these rows is padded to."""
    longest = max(len(row.tokens) for row in rows) - 1 - len(prefix)
    targets = sum(len(row.targets) for row in rows)
    return BatchShape(_rounded(longest, LENGTH_STEP), _rounded(targets, TARGET_STEP), len(rows))


def common_shapes(shapes: Iterable[BatchShape], most: int) -> list[BatchShape]:
    """At most so many shapes, the narrowest first, and each of ``shapes`` fits into one of them."""
    ordered = sorted(shapes)
    cuts = np.linspace(0, len(ordered), min(most, len(ordered)) + 1).round().astype(int)
    groups = [ordered[start:end] for start, end in pairwise(cuts)]
    return sorted({BatchShape(*map(max, zip(*group, strict=True))) for group in groups})


def make_batch(
    rows: Sequence[Row],
    references: Sequence[ReferenceTopK | None],
    prefix: Sequence[int] = (),
    sizes: Sequence[int] | None = None,
    shape: BatchShape | None = None,
) -> Batch:
    """Pad rows to one length. The last token of a row is only ever a target.

    ``prefix`` is what all of them start with, before any target; it is kept apart. ``sizes`` are the
    part sizes of the step, where these rows are a share of it. ``shape`` is what they are padded to, the
    least where it is None.
    """
    skipped = len(prefix)
    shape = shape or shape_of(rows, prefix)
    tokens = np.zeros((shape.rows, shape.width), np.int32)
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    parts: list[str] = []
    ids, log_probabilities, of_target = [], [], []
    for number, (row, top) in enumerate(zip(rows, references, strict=True)):
        inputs = row.tokens[skipped:-1]
        tokens[number, : len(inputs)] = inputs
        places += [(number, position - 1 - skipped) for position in row.targets]
        targets += [row.tokens[position] for position in row.targets]
        parts += [row.part] * len(row.targets)
        ids.append(top.ids if top else np.zeros((len(row.targets), TOP), np.int32))
        log_probabilities.append(
            top.log_probabilities if top else np.zeros((len(row.targets), TOP), np.float32)
        )
        of_target.append(top.of_target if top else np.zeros(len(row.targets), np.float32))
    padding = shape.targets - len(targets)

    def of_part(wanted: str) -> mx.array:
        return mx.array([float(part == wanted) for part in parts] + [0.0] * padding)

    return Batch(
        prefix=mx.array(list(prefix), dtype=mx.int32),
        tokens=mx.array(tokens),
        places=mx.array(places + [(0, 0)] * padding),
        targets=mx.array(targets + [0] * padding),
        forget=of_part("forget"),
        retain=of_part("retain"),
        negative=of_part("negative"),
        top_ids=mx.array(np.concatenate([*ids, np.zeros((padding, TOP), np.int32)])),
        top_log_probabilities=mx.array(
            np.concatenate([*log_probabilities, np.zeros((padding, TOP), np.float32)])
        ),
        base_log_probabilities=mx.array(np.concatenate([*of_target, np.zeros(padding, np.float32)])),
        part_sizes=mx.maximum(mx.array(list(sizes or part_sizes(rows)), dtype=mx.float32), 1.0),
    )


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
