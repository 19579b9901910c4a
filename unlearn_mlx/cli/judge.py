"""The dialogue of ``unlearn judge``: one answer at a time, one key a label."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from unlearn_mlx.cli.consoles import stderr_console
from unlearn_mlx.evaluation.judge import LABELS, Item, keep_judgement, read_judgements
from unlearn_mlx.reporting.terminal import plain

KEYS = {key: label for label, (key, _) in LABELS.items()}
UNDO, QUIT = "u", "q"
END_OF_INPUT = "\x04"


def ask_for_labels(items: Sequence[Item], path: Path) -> None:
    """Ask for a label of every item that has none yet, and keep each as it is given."""
    console = stderr_console()
    judged = read_judgements(path)
    open_items = [item for item in items if (item.probe, item.answer) not in judged]
    if open_items:
        console.print(
            f"{len(open_items)} of {len(items)} answers to label. Base or adapter: you are not told."
        )
        for label, (key, meaning) in LABELS.items():
            console.print(plain(f"  {key}  {label}: {meaning}"))
        console.print(f"  {UNDO}  back to the answer before   {QUIT}  stop; what is labelled is kept")
    position = 0
    while position < len(open_items):
        item = open_items[position]
        console.print()
        number = len(items) - len(open_items) + position + 1
        console.print(plain(f"{number} of {len(items)}: {item.question}"), style="bold")
        console.print(Text.assemble("  expected: ", plain(item.expected)), style="dim")
        console.print(Text.assemble("  answer:   ", plain(" ".join(item.answer.split()) or "(nothing)")))
        key = _known_key()
        if key == QUIT:
            break
        if key == UNDO:
            position = max(0, position - 1)
            continue
        console.print(plain(f"  -> {KEYS[key]}"))
        keep_judgement(path, item, KEYS[key])
        position += 1
    left = len(open_items) - position
    if left:
        console.print(f"\n{left} left: the same command goes on there.")


def _known_key() -> str:
    while True:
        key = _key().lower()
        if key in KEYS or key in (UNDO, QUIT):
            return key
        if key == END_OF_INPUT:
            return QUIT


def _key() -> str:
    """One key as it is pressed; where the input is no terminal, the first letter of a line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip()[:1] if line else END_OF_INPUT
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        # Keys such as the arrows send several bytes: together they are no label.
        pressed = os.read(descriptor, 16)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    return pressed.decode(errors="replace") if pressed else END_OF_INPUT
