"""unlearn-mlx without its command: make a small model forget a topic, then ask it and the base.

``python examples/library.py "Harry Potter"`` takes about three minutes on two cores without a GPU. All
that it makes lies in ``runs/library/``; started again, it goes on where it stopped.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.keys import OPEN_KNOWN, OPEN_LEAK, key_of
from unlearn_mlx.evaluation.schema import read_evaluation
from unlearn_mlx.inference.asking import context_of
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.files import read_rows
from unlearn_mlx.runs.run import STAGES, Run
from unlearn_mlx.session.create import new_run

SHOWN = (OPEN_LEAK, *OPEN_KNOWN.values())


def forget(run: Run) -> None:
    """Work off the stages one at a time, and say what each left in the run's directory."""
    told: dict[str, Callable[[Run], str]] = {
        "questions": _questions,
        "answers": _answers,
        "train": lambda run: f"the adapter lies in {run.file('adapter')}",
        "evaluate": _metrics,
    }
    for stage in STAGES:
        run_stages(run, [stage])
        print(f"{stage}: {told[stage](run)}", flush=True)


def ask(run: Run, question: str) -> dict[str, str]:
    """What the base and the adapted model answer, side by side in one batch."""
    engine = Engine(run.model_name, run.file("adapter"))
    engine.wait_until_ready()
    # Each has a conversation of its own, which begins here.
    answering = engine.answer(
        {whose: context_of([], question) for whose in ("base", "adapter")}, max_tokens=48
    )
    texts = {"base": "", "adapter": ""}
    for piece in answering:
        texts[piece.mode] += piece.text
    engine.close()
    return {whose: text.strip() for whose, text in texts.items()}


def _questions(run: Run) -> str:
    rows = read_rows(run.file("questions.jsonl"))
    return f"{len(rows)}, such as {rows[0]['question']!r}"


def _answers(run: Run) -> str:
    rows = read_rows(run.file("answers.jsonl"))
    accepted = [row for row in rows if row["accepted"]]
    return f"{len(accepted)} of {len(rows)} accepted, such as {accepted[0]['answer']!r}"


def _metrics(run: Run) -> str:
    evaluation = read_evaluation(run.path)
    base, adapter = evaluation.base, evaluation.adapter
    keys = [key for name in SHOWN if (key := key_of(base, name))]
    return ", ".join(f"{key} {base[key]:.0%} -> {adapter[key]:.0%}" for key in keys)


def main() -> int:
    """Forget the topic that is named, by default Harry Potter."""
    prepare_cpu()  # where there is no GPU: before mlx is imported, which takes the first BLAS it finds
    topic = sys.argv[1] if len(sys.argv) > 1 else "Harry Potter"
    try:
        run = new_run(topic, "smollm2", "quick", {}, Path("runs") / "library").make()
        forget(run)
    except UserError as error:  # one line that names the way out
        print(error, file=sys.stderr)
        return error.exit_code
    question = f"What do you know about {topic}?"
    for whose, text in ask(run, question).items():
        print(f"{whose}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
