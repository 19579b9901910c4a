"""Every speed metric from one command: ``unlearn bench``, or ``python -m benchmarks [NAME ...]``."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import machine

NAMES = (
    "startup",
    "chat",
    "generation",
    "training",
    "ring",
    "machine_limit",
    "growth",
    "planner",
    "company",
    "serve",
    "tui",
    "demo",
    "end_to_end",
    "first_run",
)

# What --quick measures, once each way, in about ten minutes on two cores: the counts that differ.
QUICK: dict[str, dict[str, Any]] = {
    "startup": {},
    "chat": {},
    "generation": {"answers": 128, "peer_batches": (64,)},
    "training": {"steps": 10},
    "machine_limit": {},
}


def main() -> int:
    """Run the named benchmarks, all by default, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="unlearn bench", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5, help="of each way; the median counts (5)")
    parser.add_argument("--share", type=Path, metavar="FILE", help="write the result to a file as well")
    parser.add_argument("--model", metavar="MODEL", help="of first_run; the others measure smollm2")
    parser.add_argument("--quick", action="store_true", help="fewer of them, once each: ten minutes")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"no benchmark '{unknown[0]}': use {', '.join(NAMES)}")
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    repeats = 1 if given.quick else given.repeats
    result = {"machine": machine(), "repeats": repeats}
    for name in given.names or (QUICK if given.quick else NAMES):
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        measure = importlib.import_module(f"benchmarks.{name}").measure
        counts = QUICK.get(name, {}) if given.quick else {}
        result[name] = measure(repeats, *([given.model] if name == "first_run" else []), **counts)
        if given.share:
            given.share.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
