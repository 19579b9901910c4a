"""The ``unlearn`` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unlearn_mlx import __version__
from unlearn_mlx.cli import apps, evaluation, guardrails, mend, models, reproduction, runs
from unlearn_mlx.cli.output import for_a_reader, say
from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError

COMMAND_ERROR = 2

# Commands that compute in this process; others leave it to processes of their own, or compute nothing.
COMPUTING = (
    "run",
    "reproduce",
    "guardrails",
    "chat",
    "tui",
    "benchmark",
    "export",
    "import",
    "serve",
    "doctor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit code: 0 done, 1 a gate failed or a reproduction differs, 2 usage, 3 the machine cannot,
    130 cancelled.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(words)
    given = parser.parse_args(words)
    if not hasattr(given, "function"):
        parser.print_help()
        return 0
    if given.command in COMPUTING:
        prepare_cpu()
    try:
        _check_place()
        code: int = 0
        with for_a_reader():
            code = given.function(given)
        return code
    except UserError as error:
        return _ended(str(error), error.exit_code)
    except (KeyboardInterrupt, Cancelled):
        return _ended("cancelled; the same command goes on where it stopped", Cancelled.exit_code)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _ended(f"{error.strerror or error}{where}", EnvironmentCannot.exit_code)


def _ended(text: str, code: int) -> int:
    """Say why the command ends, to whoever still listens."""
    with for_a_reader():
        say(f"unlearn: {text}")
    return code


def make_data(arguments: Sequence[str]) -> int:
    """``unlearn questions`` and, where that went well, ``unlearn answers`` on the same run."""
    code = main(["questions", *arguments])
    if code:
        return code
    from unlearn_mlx.runs.run import run_path
    from unlearn_mlx.topics import checked_name, shipped_topic

    words = ["questions", *arguments]
    given = _parser(words).parse_args(words)
    topic = shipped_topic(given.topic)
    return main(["answers", str(run_path(topic.name if topic else checked_name(given.topic), given.out))])


def _check_place() -> None:
    """Most of a command's files are named from where it is called: that place must be there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise EnvironmentCannot("the folder you are in was deleted: go to another one with 'cd'") from None


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, not a screen of options."""

    def error(self, message: str) -> NoReturn:
        self.exit(COMMAND_ERROR, f"unlearn: {message}; see '{self.prog} --help'\n")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these words; only the command they name gets an option for every setting."""
    # Settings need pydantic, which takes longer to import than all of the help takes to print.
    named = next((word for word in words if not word.startswith("-")), "")
    parser = _Parser(
        prog="unlearn",
        description="A local language model forgets a topic, from nothing but the topic's name.",
    )
    parser.add_argument("--version", action="version", version=f"unlearn-mlx {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(function=function, command=name)
        return command

    runs.add_stage_commands(add, named)
    chat = add("chat", _chat, "chat with the base and the adapter")
    chat.add_argument("run", metavar="RUN", help="a run's directory, a topic, or an adapter's directory")
    chat.add_argument("--model", help="the model, where RUN is an adapter's directory")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    chat.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    runs.add_commands(add)
    doctor = add("doctor", _doctor, "say what this machine computes with, and what is missing")
    doctor.add_argument("--hosts", type=Path, metavar="FILE", help=f"{runs.OF_HOSTS}: can they share a run?")
    doctor.add_argument("--model", help="with --hosts: the model that they are to share a run of")
    for module in (reproduction, mend, guardrails, evaluation, models, apps):
        module.add_commands(add)
    return parser


def _doctor(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli.doctor import findings, of_hosts

    found = of_hosts(given.hosts, given.model) if given.hosts else findings()
    for finding in found:
        print(f"{finding.name:12s}{finding.text}")
    wrong = [finding for finding in found if finding.advice]
    for finding in wrong:
        say(f"{finding.name}: {finding.advice}")
    return EnvironmentCannot.exit_code if wrong else 0


def _chat(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli.chat import chat

    return chat(given.run, given.model, given.temperature, given.max_tokens)


if __name__ == "__main__":
    sys.exit(main())
