"""``unlearn guardrails MODEL TOPIC``: what each guardrail does with a model, and what it sounds like."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_mlx.cli.output import say

if TYPE_CHECKING:
    from unlearn_mlx.runs.records import Question, SampledAnswer

SHOWN = 4  # answers behind each guardrail


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = add("guardrails", _guardrails, "try every guardrail on a topic, side by side")
    command.add_argument("model", metavar="MODEL", help="a model's name or folder")
    command.add_argument("topic", metavar="TOPIC", help="a topic, such as 'Harry Potter'")
    command.add_argument("--json", action="store_true", help="print JSON")


def _guardrails(given: argparse.Namespace) -> int:
    from unlearn_mlx.inference.loading import load_by_name, model_workers
    from unlearn_mlx.runs.commands import shell_word
    from unlearn_mlx.runs.run import Work
    from unlearn_mlx.session.create import new_run
    from unlearn_mlx.synthetic_data.choice import TRIED, best_guardrails, trial_rows, trial_sentence
    from unlearn_mlx.synthetic_data.comparison import compare_guardrails
    from unlearn_mlx.text.printable import as_json

    counts = {"questions": TRIED, "neighbours": 8, "general": 16, "instructions": 4}
    with tempfile.TemporaryDirectory() as folder:
        wanted = new_run(given.topic, given.model, "standard", counts, Path(folder) / "run")
        say(f"Asking {wanted.model_name} about {wanted.topic.name}, and again behind every guardrail ...")
        run = wanted.make()
        with load_by_name(wanted.model_name) as model, model_workers(model) as workers:
            trials, answers, questions = compare_guardrails(model, Work(run, run.settings, workers=workers))
    if given.json:
        print(as_json({"trials": trial_rows(trials), "answers": [answer.as_row() for answer in answers]}))
        return 0
    for trial in trials:
        said = [answer for answer in answers if answer.guardrail == trial.name]
        print(
            f"{trial.name}: {trial.passed} of {trial.asked} pass, "
            f"{trial.distinct:.0%} of word pairs distinct, {trial.words:.0f} words an answer"
        )
        _show(said, questions)
    say(trial_sentence(trials, best_guardrails(trials)))
    say(f"Take one by hand: 'unlearn run TOPIC --guardrail {shell_word(trials[0].name)}'")
    return 0


def _show(answers: Sequence["SampledAnswer"], questions: dict[str, "Question"]) -> None:
    from unlearn_mlx.text.printable import printable

    for answer in answers[:SHOWN]:
        mark = "+" if answer.accepted else "-"
        reason = f" [{answer.reason}]" if answer.reason else ""
        print(f"  {mark} {printable(questions[answer.question_id].question)}")
        print(f"    {printable(answer.answer)}{reason}")
