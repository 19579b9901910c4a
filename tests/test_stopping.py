"""A stop ends a stage soon, whatever it is computing: counted in passes of the model after it was asked."""

import shutil
from pathlib import Path

import pytest
from mlx_lm.models.llama import LlamaModel

from tests.helpers import QUESTIONS, SENTENCES
from tests.runs_with_results import finished_run
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.pipeline import reset_from, run_stages
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import Run, open_run

MOST_AFTER = 3  # passes: the one that is under way, and what a batch of prompts begins with
MOMENTS = (0.3, 0.9)  # of a stage's passes


class Passes:
    """Counts a stage's passes; a stop is asked for at number ``last``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, float("inf")
        does = LlamaModel.__call__

        def counted(*given, **named):
            self.count += 1
            return does(*given, **named)

        marks = Run.mark

        def marked(run, stage, state, **facts):
            self.count = 0 if state == "running" else self.count
            marks(run, stage, state, **facts)

        patch.setattr(LlamaModel, "__call__", counted)
        patch.setattr(Run, "mark", marked)  # the model is loaded before a stage begins

    def is_cancelled(self) -> bool:
        return self.count >= self.last


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    run = finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder, probes=24, samples=1)
    rows = [
        {"id": f"r-{number}", "question": text, "part": "general", "answer": SENTENCES[1], "complete": True}
        for number, text in enumerate(QUESTIONS)
    ]
    write_rows(run.file("retain.jsonl"), rows)
    return run.path


@pytest.mark.parametrize("stage", ["train", "evaluate", "audit"])
def test_a_stop_is_honoured_within_a_few_passes(finished, tmp_path, monkeypatch, stage):
    passes = Passes(monkeypatch)

    def passes_of(name, last):
        run = open_run(Path(shutil.copytree(finished, tmp_path / name)))
        reset_from(run, stage)
        # The base was never measured either.
        monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / f"cache-{name}"))
        passes.last = last
        run_stages(run, [stage], passes.is_cancelled)
        return passes.count

    whole = passes_of("whole", float("inf"))
    assert whole > 20
    for moment in MOMENTS:
        with pytest.raises(Cancelled):
            passes_of(f"stopped-{moment}", round(moment * whole))
        assert passes.count - passes.last <= MOST_AFTER, f"at {passes.last} of {whole} passes"
        assert open_run(tmp_path / f"stopped-{moment}").state_of(stage) == "cancelled"
