"""Runs of random weights that go through every stage in seconds, and the process that works on one.

``python -m tests.faults.small_runs RUN LOG MOMENT [--worker]`` is the pipeline's child process, for a
model that writes no sentences: every form passes.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import whole_runs
from tests.whole_runs import whole_run
from unlearn_mlx import pipeline
from unlearn_mlx.inference import loading
from unlearn_mlx.runs import files
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sft import parallel, trainer
from unlearn_mlx.synthetic_data import journal

# What a run ends with: these bytes are the same however often it was stopped.
RESULTS = (
    "questions.jsonl",
    "retain_questions.jsonl",
    "answers.jsonl",
    "recalled.jsonl",
    "retain.jsonl",
    "dataset/train.jsonl",
    "dataset/valid.jsonl",
    "dataset/negative.jsonl",
    "adapter/adapters.safetensors",
    "adapter/adapter_config.json",
    "evaluation.json",
)
SAVE_EVERY = 3  # steps between two checkpoints, of about a dozen


def small_run(path: Path, model_folder: Path) -> Run:
    """A run that has not begun."""
    return whole_run(path, model_folder, epochs=2.0)


@contextmanager
def any_sentence_passes() -> Iterator[None]:
    """The same, and checkpoints that lie near each other."""
    with whole_runs.any_sentence_passes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SAVE_EVERY", SAVE_EVERY)
        yield


def results_of(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's results, as far as they are there."""
    return {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}


class Moments:
    """What a process computes and writes, noted as it goes; at one of the moments it kills itself."""

    def __init__(self, log: str, last: int) -> None:
        self.note = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.last, self.count = last, 0
        self.say("begun\n")

    def say(self, text: str) -> None:
        os.write(self.note, text.encode())

    def __call__(self) -> None:
        """One more moment."""
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def gradients(self, does: Any, training: Any, chosen: Sequence[int], *others: Any) -> Any:
        result = does(training, chosen, *others)
        self.say(f"step {' '.join(map(str, chosen))}\n")
        self()
        return result

    def answers(self, does: Any, model: Any, cohorts: Any, *others: Any) -> Any:
        result = does(model, cohorts, *others)
        self.say("".join(f"answer {request.key}\n" for cohort in cohorts for request in cohort))
        self()
        return result

    def put(self, does: Any, file: Any, data: bytes) -> None:
        """A write that may be cut off in its middle."""
        if self.count + 1 == self.last:
            file.write(data[: len(data) // 2])
        self()
        does(file, data)
        self()

    def replace(self, does: Any, source: Any, target: Any, **named: Any) -> None:
        self()
        does(source, target, **named)
        self()


def main(path: str, work_log: str, last: str, *options: str) -> int:
    """Work on a run as the pipeline's child does, with a worker process where that is asked for.

    What is computed is noted in ``work_log``: a line for every process, training step and answer. It
    kills itself at moment number ``last``; 0 is never.
    """
    with any_sentence_passes(), pytest.MonkeyPatch.context() as patch:
        moments = Moments(work_log, int(last))
        for module, name, noted in (
            (parallel, "step_gradients", moments.gradients),
            (journal, "answer_groups", moments.answers),
            (files, "_put", moments.put),
            (os, "replace", moments.replace),
        ):
            patch.setattr(module, name, partial(noted, getattr(module, name)))
        patch.setattr(loading, "worker_count", lambda *_: int("--worker" in options))
        print("begun", flush=True)
        code = pipeline.main([path])
        moments.say(f"moments {moments.count}\n")
        return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
