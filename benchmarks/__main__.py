"""Every speed metric from one command: ``unlearn bench``, or ``python -m benchmarks [NAME ...]``."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.side_by_side import machine

NAMES = (
    "startup",
    "chat",
    "generation",
    "training",
    "machine_limit",
    "growth",
    "planner",
    "company",
    "tui",
    "end_to_end",
)


def main() -> int:
    """Run the named benchmarks, all by default, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="unlearn bench", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5, help="of each way; the median counts (5)")
    parser.add_argument("--share", type=Path, metavar="FILE", help="write the result to a file as well")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"no benchmark '{unknown[0]}': use {', '.join(NAMES)}")
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    result = {"machine": machine(), "repeats": given.repeats}
    for name in given.names or NAMES:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        result[name] = importlib.import_module(f"benchmarks.{name}").measure(given.repeats)
        if given.share:
            given.share.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
