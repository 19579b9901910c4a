"""The figures about memory that documents have: ``python -m tools.figures`` writes them, nobody else does.

Each block stands between ``<!-- table: tools/figures.py NAME -->`` and ``<!-- end of table -->``. They come
from the functions that ``unlearn doctor`` and ``--dry-run`` use, so that all of them say the same.
"""

import re
from collections.abc import Callable
from pathlib import Path

from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import GIGABYTE, kept_bytes, mac_memory
from unlearn_mlx.compute.planner import chat_bytes, export_bytes
from unlearn_mlx.models.machines import Mac, macs
from unlearn_mlx.models.registry import NAMED_MODELS, default_model, memory_plan

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(<!-- table: tools/figures\.py (?P<name>[a-z ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL
)
DOCUMENTS = ("README.md", "docs/on-a-mac.md")
CPU = Device("cpu", "a CPU", 16 * GIGABYTE, 2)


def first_command() -> str:
    """What the README's first command does, by machine."""
    by_model: dict[str, list[Mac]] = {}
    for mac in macs():
        by_model.setdefault(mac.model, []).append(mac)
    told = []
    for name, group in sorted(by_model.items(), key=lambda item: -item[1][-1].gigabytes):
        more = " or more" if len(group) > 1 else ""
        download = _gb(NAMED_MODELS[name].download_bytes)
        told.append(f"on a Mac with {group[0].gigabytes} GB{more} `{name}`, first downloading {download}")
    embedded, _ = default_model(CPU)
    return (
        f"The first makes this machine's model forget Harry Potter: {'; '.join(told)}; on a machine without "
        f"a GPU the embedded `{embedded}`. With `--model {embedded}` at its end it takes the embedded one "
        "anywhere, and downloads no model.\n"
    )


def mac_table() -> str:
    """What Macs of several sizes are given by default."""
    lines = [
        "| Mac | macOS lets the GPU keep about | `unlearn run` takes | at its highest point | preset |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {mac.gigabytes} GB | {_gb(mac.granted)} | `{mac.model}`, once downloaded "
        f"({_gb(NAMED_MODELS[mac.model].download_bytes)}) | {_gb(mac.planned.memory)} | `{mac.preset}` |"
        for mac in macs()
    ]
    return "\n".join(["", *lines, "", ""])


def model_table() -> str:
    """What each named model takes on a Mac of 16 GB and on a CPU, part by part."""
    device = Device("metal", "Mac", mac_memory(16), 8)
    lines = [
        "| on a Mac with 16 GB | weights | answers | training | evaluation | a chat | an export |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in NAMED_MODELS.values():
        planned = memory_plan(model, device)
        peaks = (planned.generation, planned.training, planned.evaluation)
        cells = [planned.weights, *(planned.weights + peak.total for peak in peaks)]
        cells += [chat_bytes(model.shape, device), export_bytes(model.shape, device)]
        lines.append(f"| `{model.name}` | {' | '.join(_gb(cell) for cell in cells)} |")
    kept = _gb(kept_bytes(device))
    return "\n".join(["", *lines, "", f"On top mlx may keep up to {kept} of freed arrays.", "", ""])


def doctor_lines() -> str:
    """The end of what ``unlearn doctor`` prints."""
    return "\n".join(["```", *(f"plan        {mac.line()}" for mac in macs()), "```", ""])


BLOCKS: dict[str, Callable[[], str]] = {
    "first command": first_command,
    "macs": mac_table,
    "models": model_table,
    "doctor": doctor_lines,
}


def with_figures(text: str) -> str:
    """A document with its blocks as they are now."""
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found["name"]]() + found[3], text)


def _gb(count: float) -> str:
    return f"{count / GIGABYTE:.1f} GB"


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(with_figures(path.read_text(encoding="utf-8")), encoding="utf-8")
