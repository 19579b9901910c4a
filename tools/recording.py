"""A run in a terminal, as an animated picture: ``python -m tools.recording`` writes docs/images/run.svg.

A quick run of the embedded model is made in a pseudo-terminal and every screen that it shows is kept. The
picture plays them faster than they were, never slower, and stays on the last one for those who have asked
their system for less motion. ``python -m tools.recording FILE -- COMMAND...`` records another command.
"""

import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import pexpect
import pyte

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "run.svg"
COMMAND = ("unlearn", "run", "Harry Potter", "--model", "smollm2", "--preset", "quick")
COLUMNS, ROWS = 96, 30
CHARACTER, LINE, MARGIN, FONT = 8.4, 18, 14, 14  # pixels
LENGTH = 24.0  # seconds of the whole picture, beside its last screen
LAST = 6.0  # seconds that the last screen stays
INTERVAL = 0.1  # seconds between two looks at the screen
COLOURS = {
    "default": "#d6dde6",
    "black": "#5b6673",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#e3b341",  # what pyte calls the terminal's yellow
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
    "white": "#f0f6fc",
}


class Screen(NamedTuple):
    """What a terminal shows from some second on: each line as SVG."""

    since: float
    lines: tuple[str, ...]


def recorded(command: Sequence[str], directory: Path) -> list[Screen]:
    """Every screen that a command shows, until it ends.

    Raises:
        SystemExit: where the command fails.
    """
    terminal = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(terminal)
    stream.feed(f"$ {shlex.join(command)}\r\n".encode())
    child = pexpect.spawn(
        sys.executable,
        ["-m", "unlearn_mlx.cli", *command[1:]],
        cwd=str(directory),
        dimensions=(ROWS, COLUMNS),
        timeout=None,
    )
    began, screens = time.monotonic(), [Screen(0.0, _lines(terminal))]
    is_open = True
    while is_open:
        until = time.monotonic() + INTERVAL
        while is_open and (left := until - time.monotonic()) > 0:
            try:
                stream.feed(child.read_nonblocking(65536, left))
            except pexpect.TIMEOUT:
                break
            except pexpect.EOF:
                is_open = False
        lines = _lines(terminal)
        if lines != screens[-1].lines:
            screens.append(Screen(time.monotonic() - began, lines))
    child.close()
    if child.exitstatus != 0:
        raise SystemExit(f"{shlex.join(command)} ended with {child.exitstatus}")
    return screens


def animated(screens: Sequence[Screen]) -> str:
    """Screens as one SVG; a line that several of them show is in it once."""
    speed = max(1.0, screens[-1].since / LENGTH)
    length = screens[-1].since / speed + LAST
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    numbers: dict[str, int] = {}
    frames, moments = [], []
    for place, screen in enumerate(screens):
        uses = [
            f'<use href="#l{numbers.setdefault(line, len(numbers))}" y="{row * LINE + FONT}"/>'
            for row, line in enumerate(screen.lines)
            if line
        ]
        frames.append(f'<g transform="translate({place * width:.0f})">{"".join(uses)}</g>')
        moments.append(
            f"{100 * screen.since / speed / length:.3f}%{{transform:translateX({-place * width:.0f}px)}}"
        )
    shared = [f'<text id="l{number}" xml:space="preserve">{line}</text>' for line, number in numbers.items()]
    last = f"translateX({-(len(screens) - 1) * width:.0f}px)"
    style = (
        f"text{{font:{FONT}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{COLOURS['default']}}}"
        f"#film{{animation:film {length:.1f}s step-end infinite}}@keyframes film{{{''.join(moments)}}}"
        f"@media(prefers-reduced-motion:reduce){{#film{{animation:none;transform:{last}}}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>A run in the terminal, {speed:.0f} times faster than it was</title><style>{style}</style>"
        f'<defs>{"".join(shared)}</defs><rect width="100%" height="100%" rx="8" fill="#0d1117"/>'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{width - MARGIN:.0f}" height="{height:.0f}" '
        f'overflow="hidden"><g id="film">{"".join(frames)}</g></svg></svg>\n'
    )


def _lines(terminal: pyte.Screen) -> tuple[str, ...]:
    return tuple(_line(terminal, row) for row in range(ROWS))


def _line(terminal: pyte.Screen, row: int) -> str:
    """One line as SVG text: a span for each stretch of one look, at its own column."""
    stretches: list[tuple[tuple[str, bool], int, str]] = []
    for column in range(COLUMNS):
        character = terminal.buffer[row][column]
        look = (character.fg, character.bold)
        if stretches and stretches[-1][0] == look:
            stretches[-1] = (look, stretches[-1][1], stretches[-1][2] + character.data)
        else:
            stretches.append((look, column, character.data))
    spans = []
    for (colour, is_bold), column, text in stretches:
        shown = text.rstrip()
        if not shown:
            continue
        given = COLOURS.get(colour, f"#{colour}" if re.fullmatch(r"[0-9a-f]{6}", colour) else "")
        fill = f' fill="{given}"' if given and colour != "default" else ""
        weight = ' font-weight="bold"' if is_bold else ""
        # Each character stands at its own place, whatever font the reader has.
        begin = len(shown) - len(shown.lstrip())
        places = f'x="{(column + begin) * CHARACTER:.1f}" textLength="{len(shown.strip()) * CHARACTER:.1f}"'
        spans.append(f"<tspan {places}{fill}{weight}>{escape(shown.strip())}</tspan>")
    return "".join(spans)


def main(given: Sequence[str]) -> int:
    """Record the command that is given, or the quick run."""
    picture = Path(given[0]) if given else PICTURE
    command = tuple(given[2:]) or COMMAND
    with tempfile.TemporaryDirectory(prefix="unlearn-recording-") as directory:
        screens = recorded(command, Path(directory))
    picture.write_text(animated(screens), encoding="utf-8")
    print(f"{picture}: {len(screens)} screens, {picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
