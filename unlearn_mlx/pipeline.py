"""The stages in their order. ``python -m unlearn_mlx.pipeline RUN`` is the child process that faces start.

A face never holds the model while a run works: a Metal out-of-memory abort ends this process only,
and what it had finished lies in the run directory.
"""

import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_mlx.compute.awake import kept_awake
from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.compute.limits import is_out_of_memory
from unlearn_mlx.compute.memory import out_of_memory, room_of
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError
from unlearn_mlx.evaluation.schema import evaluation_of, read_audit
from unlearn_mlx.mending.folder import open_marks
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.building import remove
from unlearn_mlx.runs.commands import making_command
from unlearn_mlx.runs.files import disk_error
from unlearn_mlx.runs.records import MessageEvent
from unlearn_mlx.runs.run import AFTER, STAGES, Run, Work, open_run, save_topic
from unlearn_mlx.runs.writing import Busy
from unlearn_mlx.topics import Topic, shipped_topic

if TYPE_CHECKING:
    from unlearn_mlx.inference.chat_model import ChatModel
    from unlearn_mlx.models.registry import ModelSource
    from unlearn_mlx.runs.records import Computation


def run_stages(
    run: Run, stages: Sequence[str] = STAGES, is_cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Work off the stages that are not done yet; the model is loaded once.

    Raises:
        Cancelled: once ``is_cancelled`` returns True; what was finished is on disk.
        UserError: where a stage cannot do its work.
    """
    from unlearn_mlx.compute.group import other_ranks

    with run.writing(), other_ranks(is_cancelled) as ranks:
        todo = [stage for stage in stages if _is_to_do(run, stage)]
        has_topic = run.file("topic.toml").exists()
        if not todo and has_topic:
            return
        from unlearn_mlx.compute.holders import holding
        from unlearn_mlx.compute.memory import memory_facts, wired
        from unlearn_mlx.inference.loading import load_model, model_workers
        from unlearn_mlx.models.registry import resolve_model

        source = resolve_model(run.model_name)
        if source.weights_sha256 != run.manifest.model.sha256:
            known, other = run.manifest, run.path.with_name(f"{run.path.name}-2")
            raise UserError(
                f"{run.path} was made with other weights of {source.name}: "
                f"'{making_command(known.topic, source.name, known.settings, other)}' makes a new run"
            )
        first = (todo or stages)[0]
        planned, needed = _planned(run, source, first, is_cancelled)
        run.event(first, "message", text=f"loading {source.name}", needed=needed)
        work = Work(run, run.settings, is_cancelled, memory_facts=memory_facts)
        # The audit rounds the weights, which workers have as they were.
        shared = [stage for stage in stages if stage != "audit"]

        def on_lost(text: str) -> None:
            run.event("run", "message", text=text)

        with holding(needed), wired(), load_model(source) as model:
            model.decode_batch_size = _recorded(run, model, planned, ranks.count if ranks else 0).decode_batch
            _keep_notes(run, model)
            with model_workers(model, on_lost=on_lost, ranks=ranks) if shared else nullcontext() as workers:
                watching = workers.watching(is_cancelled) if workers else is_cancelled
                together = replace(work, workers=workers, is_cancelled=watching)
                if not has_topic:
                    _make_topic(model, together)
                for stage in shared:
                    _work_off(stage, model, together)
            if "audit" in stages:
                _work_off("audit", model, work)


def _is_to_do(run: Run, stage: str) -> bool:
    """Whether a stage never finished, or what it made is gone or of an adapter that was replaced."""
    if stage == "mend":
        return bool(open_marks(run))
    if not run.stage_is_done(stage) or run.lacks_result_of(stage):
        return True
    if stage == "evaluate":
        return evaluation_of(run.path) is None
    return stage == "audit" and read_audit(run.path) is None


def _planned(
    run: Run, source: "ModelSource", stage: str, is_cancelled: Callable[[], bool]
) -> tuple["Computation", int]:
    """How the run is computed and the bytes that it takes: as it was begun, or as it fits this machine.

    Chats are asked to make room, and what was chosen is said.

    Raises:
        EnvironmentCannot: where it does not fit; nothing is loaded then.
    """
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.compute.holders import make_room
    from unlearn_mlx.compute.model_shape import shape_of
    from unlearn_mlx.compute.planner import plan, refuse, usual_computation

    def say(text: str) -> None:
        run.event(stage, "message", text=text)

    device, known = current_device(), run.manifest.computation
    try:
        shape = shape_of(source.folder)
    except UserError:  # its configuration says its sizes in other words
        return known or usual_computation(device), 0
    planned = plan(shape, run.settings, device, begun=known)
    smaller = plan(shape, run.settings, device)
    if planned.memory > room_of(device) and smaller.memory < planned.memory:
        say("this machine has less memory than the one that the run was begun on: its last digits may differ")
        planned, known, run.manifest.computation = smaller, None, smaller.computation
        run.save_manifest()
    refuse(planned, source.name, device, make_room(planned.process_bytes, say, is_cancelled))
    for reason in [] if known else planned.reasons:
        say(reason)
    return known or planned.computation, planned.process_bytes


def _recorded(run: Run, model: "ChatModel", planned: "Computation", others: int) -> "Computation":
    """How the run is computed from now on, whatever is free or measured when it goes on.

    It is begun beside so many ``others``, each of which gets a part of a training step.
    """
    from unlearn_mlx.compute.batch_size import decode_batch_size

    if run.manifest.computation is None:
        most = min(planned.decode_batch, decode_batch_size(model))
        changes: dict[str, int] = {"decode_batch": most}
        if others:
            rows = math.ceil(run.settings.batch_size / (1 + others))
            changes["part_rows"] = min(rows, planned.part_rows or rows)
        run.manifest.computation = planned.model_copy(update=changes)
        run.save_manifest()
    return run.manifest.computation


def _keep_notes(run: Run, model: "ChatModel") -> None:
    """Keep in the manifest how the model's chat template is used: thinking, date and system messages."""
    notes = model.template.notes()
    if notes != run.manifest.chat_template:
        run.manifest.chat_template = notes
        run.save_manifest()


def _work_off(stage: str, model: "ChatModel", work: Work) -> None:
    from unlearn_mlx.evaluation.audit import audit
    from unlearn_mlx.evaluation.stage import evaluate, prepare_probes
    from unlearn_mlx.mending.rows import renew_rows
    from unlearn_mlx.mending.stage import mend
    from unlearn_mlx.reporting.report import write_report
    from unlearn_mlx.sft.trainer import train
    from unlearn_mlx.synthetic_data.stages import make_answers, make_questions

    run = work.run
    if not _is_to_do(run, stage):
        return
    _check_origin(run, stage)
    run.mark(stage, "running")
    try:
        if stage == "questions":
            if run.topic.is_bare and not run.manifest.proposed:
                _propose(model, work, run.topic.name)
            make_questions(model, work, prepare_probes(model, work))
        else:
            stages = {
                "answers": make_answers,
                "train": train,
                "evaluate": evaluate,
                "audit": audit,
                "mend": mend,
            }
            stages[stage](model, work)
        if stage == "answers":
            renew_rows(run)
        if stage in ("evaluate", "audit"):
            write_report(run)
    except Exception as raised:
        error = _named(run, raised)
        if isinstance(error, OSError):
            error = disk_error(Path(error.filename or run.path), error)
        if not isinstance(error, Cancelled | UserError):
            raise
        with suppress(UserError):  # where the disk is full, that is what must be told, and told once
            if isinstance(error, Cancelled):
                run.mark(stage, "cancelled")
            else:
                run.mark(stage, "failed", error=str(error))
        raise error from None
    trained = {"adapter": adapter_sha256(run.file("adapter"))} if stage == "train" else {}
    run.mark(stage, "done", **trained)
    remove(run.leftovers())  # such as checkpoints: hundreds of megabytes for a large model


def _named(run: Run, raised: Exception) -> Exception:
    """An error, or in its place that memory ran out, with what the run takes by its plan."""
    if not is_out_of_memory(raised):
        return raised
    needed = [event.needed for event in run.events() if isinstance(event, MessageEvent) and event.needed]
    told = out_of_memory(needed[-1] if needed else 0)
    return EnvironmentCannot(f"out of memory: {told}; what was finished is kept")


def _make_topic(model: "ChatModel", work: Work) -> None:
    """Make a topic's file that was deleted: the shipped one, or what the model proposes."""
    run = work.run
    topic = shipped_topic(run.manifest.topic) or Topic(run.manifest.topic)
    if topic.is_bare and not run.is_imported:
        _propose(model, work, topic.name)
    else:
        save_topic(run.file("topic.toml"), topic)


def _propose(model: "ChatModel", work: Work, name: str) -> None:
    """Let the model say what belongs to a topic that nobody has described."""
    from unlearn_mlx.synthetic_data.proposal import propose_topic

    run = work.run
    run.event("questions", "message", text="the model proposes what belongs to the topic")
    save_topic(run.file("topic.toml"), propose_topic(model, work, name))
    run.manifest.proposed = True
    run.save_manifest()


def _check_origin(run: Run, stage: str) -> None:
    """Refuse to make anew what was imported.

    Raises:
        UserError: for a stage that made the adapter, which happened elsewhere.
    """
    if run.is_imported and stage in STAGES[: STAGES.index("evaluate")]:
        raise UserError(
            f"{run.path} was imported, and nothing is here to make its adapter from: {run.way_to_adapter()}"
        )


def reset_from(run: Run, stage: str, learning_rate: float | None = None) -> None:
    """Forget that a stage and those after it are done, so that they are worked off again.

    ``learning_rate`` is another than the run was made with, where it is not None.

    Raises:
        UserError: where the stage made an adapter that was imported, or for a rate out of range.
    """
    _check_origin(run, stage)
    if learning_rate is not None:
        settings = make_settings(**{**run.settings.model_dump(), "learning_rate": learning_rate})
        run.manifest.settings = settings.model_dump()
    if stage == "questions":
        # What is asked for again is to be made, not read: an answer is not taken from before.
        shutil.rmtree(run.file("journal"), ignore_errors=True)
    every = (*STAGES, *AFTER)
    for later in every[every.index(stage) :]:
        run.manifest.stages.pop(later, None)
    if stage not in ("evaluate", "audit"):
        # The checkpoint at its end would have a training that is over go on, and do nothing.
        shutil.rmtree(run.file("checkpoints"), ignore_errors=True)
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
        with kept_awake():
            run_stages(run, stages, stop.is_set)
    except Busy as error:
        print(f"unlearn: {error}", file=sys.stderr)  # the events are the other process's
        return error.exit_code
    except Exception as raised:
        ended = _named(run, raised)
        if isinstance(ended, Cancelled):
            return ended.exit_code
        if not isinstance(ended, UserError):
            raise
        print(f"unlearn: {ended}", file=sys.stderr)
        with suppress(UserError):
            run.event("run", "error", text=str(ended), exit_code=ended.exit_code)
        return ended.exit_code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The child's entry point: a run directory, and the stages to work off."""
    prepare_cpu()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return work_as_child(Path(given[0]), given[1:] or STAGES)


if __name__ == "__main__":
    sys.exit(main())
