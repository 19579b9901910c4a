"""The stages in their order. ``python -m unlearn_mlx.pipeline RUN`` is the child process that faces start.

A face never holds the model while a run works: a Metal out-of-memory abort ends this process only,
and what it had finished lies in the run directory.
"""

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.runs.run import AFTER, STAGES, Run, Work, open_run, save_topic

if TYPE_CHECKING:
    from unlearn_mlx.inference.chat_model import ChatModel


def run_stages(
    run: Run, stages: Sequence[str] = STAGES, is_cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Work off the stages that are not done yet; the model is loaded once.

    Raises:
        Cancelled: once ``is_cancelled`` returns True; what was finished is on disk.
        UserError: where a stage cannot do its work.
    """
    work = Work(run, run.settings, is_cancelled)
    with run.writing():
        todo = [stage for stage in stages if not run.stage_is_done(stage)]
        if not todo:
            return
        from unlearn_mlx.inference.loading import load_model, model_workers
        from unlearn_mlx.models.registry import resolve_model

        source = resolve_model(run.model_name)
        if source.weights_sha256 != run.manifest.model.sha256:
            raise UserError(
                f"{run.path} was made with other weights of {source.name}: use '--out' for a new run"
            )
        run.event(todo[0], "message", text=f"loading {source.name}")
        # The audit rounds the weights, which workers have as they were.
        shared = [stage for stage in todo if stage != "audit"]

        def on_lost(text: str) -> None:
            run.event("run", "message", text=text)

        with load_model(source) as model:
            with model_workers(model, on_lost=on_lost) if shared else nullcontext() as workers:
                for stage in shared:
                    _work_off(stage, model, replace(work, workers=workers))
            for stage in todo[len(shared) :]:
                _work_off(stage, model, work)


def _work_off(stage: str, model: "ChatModel", work: Work) -> None:
    from unlearn_mlx.evaluation.audit import audit
    from unlearn_mlx.evaluation.stage import evaluate, prepare_probes
    from unlearn_mlx.reporting.report import write_report
    from unlearn_mlx.sft.trainer import train
    from unlearn_mlx.synthetic_data.proposal import propose_topic
    from unlearn_mlx.synthetic_data.stages import make_answers, make_questions

    run = work.run
    run.mark(stage, "running")
    try:
        if stage == "questions":
            if run.topic.is_bare and not run.manifest.proposed:
                run.event(stage, "message", text="the model proposes what belongs to the topic")
                save_topic(run.file("topic.toml"), propose_topic(model, work, run.topic.name))
                run.manifest.proposed = True
                run.save_manifest()
            make_questions(model, work, prepare_probes(model, work))
        else:
            {"answers": make_answers, "train": train, "evaluate": evaluate, "audit": audit}[stage](
                model, work
            )
        if stage in ("evaluate", "audit"):
            write_report(run)
    except Cancelled:
        run.mark(stage, "cancelled")
        raise
    except UserError as error:
        run.mark(stage, "failed", error=str(error))
        raise
    run.mark(stage, "done")


def reset_from(run: Run, stage: str) -> None:
    """Forget that a stage and those after it are done, so that they are worked off again."""
    if stage == "questions":
        # What is asked for again is to be made, not read: an answer is not taken from before.
        shutil.rmtree(run.file("journal"), ignore_errors=True)
    every = (*STAGES, *AFTER)
    for later in every[every.index(stage) :]:
        run.manifest.stages.pop(later, None)
    if stage != "evaluate":
        # To be measured anew, or of an adapter that is about to be replaced: the report would show it.
        run.file("audit.json").unlink(missing_ok=True)
    run.save_manifest()


def work_as_child(run_path: Path, stages: Sequence[str]) -> int:
    """Work off stages until done or told to stop by a signal. Returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run = open_run(run_path)
    try:
        run_stages(run, stages, stop.is_set)
    except (UserError, Cancelled) as error:
        if isinstance(error, UserError):
            run.event("run", "error", text=str(error), exit_code=error.exit_code)
        return error.exit_code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The child's entry point: a run directory, and the stages to work off."""
    prepare_cpu()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return work_as_child(Path(given[0]), given[1:] or STAGES)


if __name__ == "__main__":
    sys.exit(main())
