"""Where the command begins: in whatever surroundings it was started, and ready to be ended at any moment."""

import codecs
import os
import signal
import sys
from typing import NoReturn

CANCELLED = 130  # as errors.Cancelled; importing that would take longer than an impatient Ctrl-C
CANCELLED_TEXT = "unlearn: cancelled; the same command goes on where it stopped"
ENDINGS = ("SIGTERM", "SIGHUP")  # a kill, and a terminal that was closed

# What stands for a sign where the terminal's encoding lacks it; others are written as JSON escapes them.
_PLAIN_SIGNS = str.maketrans("│└─━┃┏┓┡┩╇┳╺╸–—−’‘“”·•…×█", "|+--|++++++-----''\"\".*.x#")


def run() -> int:
    """Run the command. Returns its exit code."""
    try:
        if sys.flags.optimize > 1:
            _begin_again()
        prepare()
        from unlearn_mlx.cli.main import main

        code = main()
        # Nothing is left to be stopped; in the middle of its end, Python could only complain.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print(CANCELLED_TEXT, file=sys.stderr)
        return CANCELLED
    return code


def prepare() -> None:
    """Make the process fit for whatever it was started in."""
    _open_closed_streams()
    tolerate_encodings()
    _end_on_signals()


def _begin_again() -> NoReturn:
    """In a Python that keeps its documentation strings: altair refuses one without (``PYTHONOPTIMIZE=2``)."""
    os.environ["PYTHONOPTIMIZE"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", __package__ or "unlearn_mlx.cli", *sys.argv[1:]])


def _open_closed_streams() -> None:
    """Where input or output was closed (``<&-``), nothing comes and nothing is shown.

    Left closed, its number would be given to the next file that is opened, and be written to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))


def tolerate_encodings() -> None:
    """No character that comes or goes is an error, whatever the terminal's encoding."""
    codecs.register_error("otherwise", _written_otherwise)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "otherwise"), (sys.stderr, "otherwise")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _written_otherwise(error: UnicodeError) -> tuple[str, int]:
    """What is written in the place of characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(_PLAIN_SIGNS)
    units = lacking.encode("utf-16-be", "surrogatepass")
    pairs = [int.from_bytes(units[place : place + 2], "big") for place in range(0, len(units), 2)]
    return "".join(chr(unit) if unit < 128 else f"\\u{unit:04x}" for unit in pairs), error.end


def _end_on_signals() -> None:
    """A kill or a closed terminal ends the command as Ctrl-C does: what was begun is put in order first."""
    numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]

    def end(*_: object) -> NoReturn:
        # A terminal that closes sends several; none may end what is being put in order.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        os.write(2, f"{CANCELLED_TEXT}\n".encode())
        # No KeyboardInterrupt, which a chat takes for the end of an answer.
        raise SystemExit(CANCELLED)

    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, end)
