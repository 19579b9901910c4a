"""Commands that start another program: the terminal app, the demo, the benchmarks."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.paths import PROJECT

# A wheel keeps the demo inside the package.
DEMOS = (Path(__file__).resolve().parent.parent / "_demo" / "demo_app.py", PROJECT / "demo_app.py")


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    tui = add("tui", _tui, "the terminal app: runs under control, and live chat")
    tui.add_argument("run", metavar="RUN", nargs="?", help="open this run: its directory, topic or slug")
    demo = add("demo", _demo, "see a model forget, in the browser")
    demo.add_argument("--port", type=int, default=8501, help="on this machine alone (default: %(default)s)")
    demo.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    bench = add("bench", _bench, "measure speed on this machine, beside other tools")
    bench.add_argument("names", metavar="NAME", nargs="*", help="some of the benchmarks (default: all)")
    bench.add_argument("--repeats", type=int, default=5, help="of each way; the median counts (5)")
    bench.add_argument("--share", type=Path, metavar="FILE", help="write the result to a file as well")
    bench.add_argument("--quick", action="store_true", help="fewer of them, once each: ten minutes")
    bench.add_argument("--model", metavar="MODEL", help="of first_run; the others measure smollm2")


def _tui(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.finding import find_run

    run = find_run(given.run).path if given.run else None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise EnvironmentCannot("the terminal app needs a terminal: use 'unlearn run' and 'unlearn chat'")
    from tui.app import UnlearnApp

    app = UnlearnApp(run)
    app.run()
    return app.return_code or 0


def _demo(given: argparse.Namespace) -> int:
    if not 1 <= given.port < 65536:
        raise UserError(f"--port {given.port}: a port is between 1 and 65535")
    script = next((path for path in DEMOS if path.exists()), None)
    if script is None:
        raise EnvironmentCannot("demo_app.py is missing: install unlearn-mlx again, or run it from a clone")
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(given.port)]
    if given.no_browser:
        command += ["--server.headless", "true"]
    # In this process's place, so that Ctrl-C and a kill reach the server itself.
    os.execv(sys.executable, command)


def _bench(given: argparse.Namespace) -> int:
    if not (PROJECT / "benchmarks" / "__main__.py").exists():
        raise EnvironmentCannot("the benchmarks come with a clone of the project alone: run it there")
    command = [sys.executable, "-m", "benchmarks", *given.names, "--repeats", str(given.repeats)]
    command += ["--quick"] if given.quick else []
    if given.share:
        command += ["--share", str(given.share.resolve())]
    if given.model:
        command += ["--model", given.model]
    return subprocess.call(command, cwd=PROJECT)
