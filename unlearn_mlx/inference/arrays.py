"""Files of arrays that others made: their header is checked before anything is allocated for it."""

import struct
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from unlearn_mlx.runs.files import parsed

LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
MOST_DIMENSIONS = 8
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file.

    Raises:
        ValueError: where it is damaged, or claims more than it has; what is wrong is said.
    """
    check_header(path)
    try:
        arrays = mx.load(str(path), format="safetensors")
        assert isinstance(arrays, dict)
        mx.eval(arrays)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return arrays


def check_header(path: Path) -> None:
    """Compare what a safetensors file says of itself with its size.

    Raises:
        ValueError: where the two do not go together.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 0 < length <= min(size - 8, LONGEST_HEADER):
                raise ValueError("its header is cut off")
            written = file.read(length)
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error
    try:
        header = parsed(written.decode())
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    for name, entry in header.items():
        if name != "__metadata__":
            _check_entry(name, entry, size - 8 - length)


def _check_entry(name: str, entry: Any, room: int) -> None:
    try:
        width, shape, (begin, end) = BYTES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        is_right = (
            len(shape) <= MOST_DIMENSIONS
            and all(type(each) is int and each >= 0 for each in (*shape, begin, end))
            and begin <= end <= room
            and prod(shape) * width == end - begin
        )
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(f"'{name[:80]}' has another size than its header says")
