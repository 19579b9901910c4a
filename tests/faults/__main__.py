"""``python -m tests.faults [PART ...]``: the whole of what the suite has a short part of.

``kills 200`` kills so often, ``kills 200 1`` at other moments; without a part, all of them run. The exit
code is 1 where something failed.
"""

import importlib
import sys
from collections.abc import Sequence

PARTS = ("surroundings", "interrupts", "kills", "ranks", "disk", "damage", "fuzz")


def main(arguments: Sequence[str]) -> int:
    """Run the parts that are named, each with the number behind it."""
    parts: list[tuple[str, list[int]]] = []
    for word in arguments:
        if word.isdecimal() and parts:
            parts[-1][1].append(int(word))
        elif word in PARTS:
            parts.append((word, []))
        else:
            print(f"no part '{word}': there are {', '.join(PARTS)}", file=sys.stderr)
            return 2
    codes = []
    for name, numbers in parts or [(name, []) for name in PARTS]:
        print(f"== {name}", flush=True)
        codes.append(importlib.import_module(f"tests.faults.{name}").main(*numbers))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
