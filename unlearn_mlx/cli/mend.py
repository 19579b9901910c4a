"""``unlearn mend``: train away what the user marked as a leak in a chat, show what it did, take it back."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from unlearn_mlx.cli import runs
from unlearn_mlx.cli.output import say
from unlearn_mlx.errors import UserError

if TYPE_CHECKING:
    from unlearn_mlx.runs.run import Run


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = add("mend", _mend, "train away what you marked as a leak in a chat")
    command.add_argument(
        "run", metavar="RUN", help="a run's directory, topic or slug, or a shipped adapter's"
    )
    command.add_argument(
        "--undo", action="store_true", help="bring back the adapter from before the last one"
    )
    command.add_argument("--learning-rate", type=float, metavar="N", help="another than 0.4 of the run's")
    command.add_argument("--json", action="store_true", help="print what came of it as JSON")


def _mend(given: argparse.Namespace) -> int:
    from unlearn_mlx.mending.folder import begin_mend
    from unlearn_mlx.mending.undo import undo_mend
    from unlearn_mlx.runs.commands import shell_word
    from unlearn_mlx.session.mending import stages_of_mend

    run = _run_of(given.run)
    if given.undo:
        with run.writing():
            say(f"{run.path}: {undo_mend(run)}.")
        say(f"Next: unlearn chat {shell_word(run.path)}")
        return 0
    with run.writing():
        stages = stages_of_mend(run)
        if "mend" in stages:
            begin_mend(run, given.learning_rate)
    code = runs.follow(run.path, stages)
    return code or _show(run, given.json)


def _run_of(name: str) -> "Run":
    """The run that is mended; one is made of a shipped adapter.

    Raises:
        UserError: where there is none.
    """
    from unlearn_mlx.runs.commands import shell_word
    from unlearn_mlx.session.catalog import opened_entry
    from unlearn_mlx.session.shipped import made_of_shipped, run_of_shipped

    entry = opened_entry(name)
    if entry is None:
        raise UserError(
            f"{name} is an adapter without a run: 'unlearn import {shell_word(name)} --topic TOPIC' makes one"
        )
    if entry.run:
        return entry.run
    known = made_of_shipped(entry)
    run = known or run_of_shipped(entry)
    say(
        f"{name} comes with the project and stays as it is: {'this is' if known else 'made'} {run.path} of it"
    )
    return run


def _show(run: "Run", as_json: bool) -> int:
    from unlearn_mlx.cli.consoles import data_console
    from unlearn_mlx.mending.result import last_result
    from unlearn_mlx.reporting.terminal import plain
    from unlearn_mlx.runs.commands import shell_word
    from unlearn_mlx.session.mending import result_lines
    from unlearn_mlx.text.printable import as_json as to_json

    if as_json:
        print(to_json(last_result(run).as_row()))
        return 0
    console = data_console()
    for line in result_lines(run):
        console.print(plain(line), soft_wrap=True)
    say(f"The old adapter is kept: 'unlearn mend {shell_word(run.path)} --undo' brings it back.")
    say(f"Next: unlearn chat {shell_word(run.path)}")
    return 0
