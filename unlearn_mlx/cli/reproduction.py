"""``unlearn reproduce``: make an adapter again from its card, and say whether the same bytes come out."""

import argparse
from collections.abc import Callable
from pathlib import Path

from unlearn_mlx.cli.output import say

OTHER_BYTES = 1


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = add(
        "reproduce", _reproduce, "make an adapter again from its card; exit code 1 where other bytes come out"
    )
    command.add_argument(
        "where", metavar="CARD|DIR|RUN|HUB_ID", help="a card, a folder that has one, a run, or OWNER/NAME"
    )
    command.add_argument("--model", help="where the base model lies here (default: as the card names it)")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="the new run's directory (default: runs/<topic>-reproduced)"
    )


def _reproduce(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli import runs
    from unlearn_mlx.runs.run import STAGES, open_run
    from unlearn_mlx.sharing.recipe import read_recipe
    from unlearn_mlx.sharing.reproduction import differences, outcome, reproduction

    recipe = read_recipe(given.where)
    run = reproduction(recipe, given.model, given.out)
    for difference in differences(recipe):
        say(f"Not as it was made: {difference}")
    code = runs.follow(run.path, STAGES[: STAGES.index("train") + 1])
    if code:
        return code
    found = outcome(recipe, open_run(run.path))
    if found.is_same:
        print(f"same bytes: {run.path / 'adapter'}, SHA-256 {found.sha256}")
        return 0
    print(f"other bytes: {run.path / 'adapter'}, SHA-256 {found.sha256}, not {recipe.adapter_sha256[:64]}")
    say(f"The first that is another: {found.differs_from}.")
    return OTHER_BYTES
