"""Commands that make runs, work on them, and say what there is."""

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_mlx.cli.output import for_a_reader, nobody_reads, say
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError
from unlearn_mlx.evaluation.gate import GATED, Gate, gate_answers, gate_value, parse_gates

if TYPE_CHECKING:
    from unlearn_mlx.cli.rendering import EventView
    from unlearn_mlx.runs.run import Run
    from unlearn_mlx.session.create import NewRun
    from unlearn_mlx.session.hosts import Hosts

GATE_FAILED = 1
OF_HOSTS = "the hosts of a file that mlx.distributed_config writes"
HOSTS = f"share the work with {OF_HOSTS}"
LOOK = 0.2  # seconds between two looks at a worker and its events


def add_stage_commands(add: Callable[..., argparse.ArgumentParser], named: str) -> None:
    """Add those that work on a run; only the command ``named`` gets an option for every setting."""
    run = add("run", _run, "do everything: questions, answers, training, evaluation")
    if named == "run":
        _add_making(run)
    run.add_argument("--dry-run", action="store_true", help="show the plan and end")
    run.add_argument("--hosts", type=Path, metavar="FILE", help=HOSTS)
    for stage, help in (
        ("questions", "let the model write questions about a topic"),
        ("answers", "let the model answer them as if it did not know the topic"),
        ("train", "train the adapter"),
        ("evaluate", "compare base and adapter on probes"),
        ("audit", "try to bring the knowledge back: rounding, relearning, many samples"),
    ):
        command = add(stage, _stage, help)
        command.set_defaults(stage=stage)
        if stage == named == "questions":
            _add_making(command)
        elif stage != "questions":
            command.add_argument("run", metavar="RUN", help="a run's directory, topic or slug")
        command.add_argument("--again", action="store_true", help="do the stage again although it is done")
        if stage != "audit":  # which one process does
            command.add_argument("--hosts", type=Path, metavar="FILE", help=HOSTS)
        if stage == "train":
            command.add_argument(
                "--learning-rate", type=float, metavar="N", help="with --again: another than the run's"
            )
        if stage == "evaluate":
            command.add_argument("--json", action="store_true", help="print the evaluation as JSON")
            command.add_argument(
                "--gate",
                metavar="BOUNDS",
                help="end with 1 where one does not hold, as in 'leak<=0.1,neighbours>=0.95' (quoted); "
                + "; ".join(f"{name}: {meaning}" for name, (_, meaning) in GATED.items()).replace("%", "%%"),
            )


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add those that say what there is."""
    runs = add("runs", _runs, "list the runs, or what nothing needs of them any longer")
    runs.add_argument("what", nargs="?", choices=["list", "clean"], default="list")
    runs.add_argument("--json", action="store_true", help="print the list as JSON")
    runs.add_argument("--now", action="store_true", help="with clean: remove what it lists")
    show = add("show", _show, "show a run's result")
    show.add_argument("run", metavar="RUN")
    show.add_argument("--json", action="store_true", help="print JSON")
    add("config", _config, "list every setting with its meaning and its value in each preset")


def _add_making(command: argparse.ArgumentParser) -> None:
    """The options that make a run: topic, model, preset, and one option for every setting."""
    from unlearn_mlx.config import OLD_NAMES, PRESETS, Settings

    old_names = {new: old for old, new in OLD_NAMES.items()}
    command.add_argument("topic", metavar="TOPIC", help="the topic's name, such as 'Harry Potter'")
    command.add_argument(
        "--model", help="smollm2, llama3, a hub id or a model folder (default: what this machine can hold)"
    )
    command.add_argument(
        "--preset", choices=list(PRESETS), default="standard", help="sets all counts together"
    )
    command.add_argument("--out", type=Path, help="the run's directory (default: runs/<topic>)")
    group = command.add_argument_group("settings (each overrides the preset's)")
    for name, field in Settings.model_fields.items():
        kind: Any = field.annotation
        group.add_argument(
            *(f"--{each.replace('_', '-')}" for each in (name, old_names.get(name)) if each),
            type=kind,
            dest=name,
            metavar="N",
            help=f"{field.description} ({field.default})",
        )


def _new_run(given: argparse.Namespace) -> "NewRun":
    from unlearn_mlx.config import Settings
    from unlearn_mlx.session.create import new_run

    changes = {key: getattr(given, key) for key in Settings.model_fields}
    wanted = new_run(given.topic, given.model, given.preset, changes, given.out)
    say(f"Model: {wanted.model_name} ({wanted.reason}; change it with --model)")
    return wanted


def _run(given: argparse.Namespace) -> int:
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.runs.run import STAGES

    if _is_other_rank():
        return 0 if given.dry_run else _take_part()
    if given.dry_run:
        wanted = _new_run(given)
        plan, device = wanted.plan(), current_device()
        topic = wanted.topic
        print(f"topic    {topic.name} ({len(topic.names)} names, {len(topic.neighbours)} neighbours)")
        print(f"model    {wanted.model_name} on {device.backend} ({device.name})")
        print(f"into     {wanted.path}")
        print("\n".join(plan))
        for key, value in wanted.settings_for_model().model_dump().items():
            print(f"{key:16s} {value}")
        return 0
    hosts = _hosts(given)
    run = _new_run(given).make()
    code = _follow_with(hosts, run.path, STAGES)
    return code or _show_run(run, next_command=f'unlearn chat "{run.path}"')


def _stage(given: argparse.Namespace) -> int:
    from unlearn_mlx.pipeline import reset_from
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.runs.run import AFTER, STAGES

    stage = given.stage
    if _is_other_rank():
        return 0 if stage == "audit" else _take_part()
    hosts = _hosts(given)
    gates = parse_gates(given.gate) if getattr(given, "gate", None) is not None else []
    run = _new_run(given).make() if stage == "questions" else find_run(given.run)
    run.check_own()
    every = (*STAGES, *AFTER)
    for earlier in every[: every.index(stage)]:
        if earlier == "train":
            run.finished_adapter()
        elif not run.stage_is_done(earlier) or run.lacks_result_of(earlier):
            raise UserError(f"{run.path}: '{earlier}' is not done: run '{run.stage_command(earlier)}' first")
    rate = getattr(given, "learning_rate", None)
    if given.again:
        with run.writing():
            reset_from(run, stage, rate if stage == "train" else None)
    elif stage == "train" and rate is not None:
        raise UserError(f"--learning-rate {rate:g} makes another training: say '--again' too")
    code = _follow_with(hosts, run.path, [stage])
    if code:
        return code
    if stage == "evaluate":
        # The gates' code is not that of a reader who has seen enough of the table.
        with for_a_reader():
            _show_run(run, next_command=f'unlearn chat "{run.path}"', as_json=given.json)
        return _hold_gates(run.path, gates)
    if stage == "audit":
        from unlearn_mlx.cli.rendering import show_audit
        from unlearn_mlx.evaluation.schema import read_audit

        if audit := read_audit(run.path):
            show_audit(audit)
        return 0
    later = STAGES[STAGES.index(stage) + 1]
    say(f'In {run.path}. Next: unlearn {later} "{run.path}"')
    return 0


def _is_other_rank() -> bool:
    """Whether mlx.launch has started this very command on several hosts, and this is not the first."""
    if "MLX_RANK" not in os.environ:  # what follows takes as long to import as all of --help
        return False
    from unlearn_mlx.compute.meeting import place_in_group

    place = place_in_group()
    return place is not None and place.rank > 0


def _take_part() -> int:
    from unlearn_mlx.compute.group import take_part

    take_part()
    return 0


def _hosts(given: argparse.Namespace) -> "Hosts | None":
    """The hosts that are to share the work, where any are given."""
    if getattr(given, "hosts", None) is None:
        return None
    from unlearn_mlx.session.hosts import read_hosts

    return read_hosts(given.hosts)


def _follow_with(hosts: "Hosts | None", path: Path, stages: Sequence[str]) -> int:
    """The same as ``follow``, with a rank on each other host."""
    if hosts is None:
        return follow(path, stages)
    from unlearn_mlx.session.hosts import started_ranks

    with started_ranks(hosts):
        return follow(path, stages)


def _hold_gates(path: Path, gates: Sequence[Gate]) -> int:
    from unlearn_mlx.evaluation.schema import read_evaluation

    if not gates:
        return 0
    evaluation = read_evaluation(path)
    held = []
    for gate in gates:
        value = gate_value(evaluation, gate.name)
        held.append(gate.passes(value))
        counted = gate_answers(evaluation, gate.name)
        told = f"{value:.3f}" + (f" in {counted}" if counted else "")
        say(f"gate {gate}: {told}, {'holds' if held[-1] else 'FAILS'}")
    return 0 if all(held) else GATE_FAILED


def follow(path: Path, stages: Sequence[str]) -> int:
    """Start a worker, show its progress, pass Ctrl-C on. Returns 0 once it is done.

    Raises:
        UserError: what the worker ended with.
        Cancelled: where it was stopped.
    """
    from unlearn_mlx.cli.consoles import stderr_console
    from unlearn_mlx.cli.rendering import EventView
    from unlearn_mlx.runs.run import open_run
    from unlearn_mlx.runs.writing import Busy
    from unlearn_mlx.session.endings import gpu_complaint, how_it_ended, want_of_memory
    from unlearn_mlx.session.processes import start_worker
    from unlearn_mlx.session.progress import Progress

    with open_run(path).writing():
        pass  # where another process is at work, no worker is started
    # What lies there from an earlier attempt has been shown then.
    progress = Progress(path, only_new=True)
    with EventView(progress, stderr_console()) as view:
        worker = start_worker(path, stages)
        try:
            code, was_asked = _watch(worker, view)
        except BrokenPipeError:
            nobody_reads()
            raise Cancelled from None
        finally:
            # A terminal that was closed, a reader who left: nobody would see the worker go on.
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
                worker.wait()
    # What another process writes into the same events is not ours.
    if progress.error and code and code == progress.error_code:
        raise _error(progress.error, code)
    if code == Cancelled.exit_code or was_asked:
        raise Cancelled
    if code == Busy.exit_code:
        with open_run(path).writing():
            pass  # it came second by a moment: says who was first
    if code:
        kept = "what was finished is kept, and the same command goes on"
        how = f"the worker {how_it_ended(code)}"
        if complaint := gpu_complaint(path, progress.began):
            raise EnvironmentCannot(f"{complaint}; {kept}")
        if want := want_of_memory(progress, code):
            raise EnvironmentCannot(f"{how}: {want}; {kept}")
        raise EnvironmentCannot(f"{how}; see {path / 'worker.log'}, and run the same command to go on")
    return 0


def _watch(worker: "subprocess.Popen[bytes]", view: "EventView") -> tuple[int, bool]:
    """Show a worker's progress to its end. Returns its exit code, and whether it was asked to stop."""
    asked = 0
    while True:
        try:
            code = worker.poll()
            view.update()
            if code is not None:
                return code, asked > 0
            time.sleep(LOOK)
        except KeyboardInterrupt:
            asked += 1
            if asked == 1:
                say("Stopping at the next safe point (Ctrl-C again to stop at once) ...")
                worker.send_signal(signal.SIGINT)
            else:
                worker.kill()


def _error(text: str, code: int) -> UserError:
    return EnvironmentCannot(text) if code == EnvironmentCannot.exit_code else UserError(text)


def _show_run(run: "Run", next_command: str = "", as_json: bool = False) -> int:
    from unlearn_mlx.cli.rendering import show_acceptance, show_result
    from unlearn_mlx.evaluation.schema import read_evaluation
    from unlearn_mlx.text.printable import as_json as to_json

    evaluation = read_evaluation(run.path)
    if as_json:
        print(to_json(evaluation.as_row()))
        return 0
    show_result(evaluation)
    show_acceptance(run.events())
    say(f"\nEverything lies in {run.path} (the adapter in {run.file('adapter')}).")
    if (report := run.file("report.html")).exists():
        say(f"The report, with every answer: {report}")
    if next_command:
        say(f"Next: {next_command}")
    return 0


def _show(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.finding import find_run

    return _show_run(find_run(given.run), as_json=given.json)


def _runs(given: argparse.Namespace) -> int:
    from unlearn_mlx.session.catalog import run_entries
    from unlearn_mlx.text.printable import as_json, one_line

    if given.what == "clean":
        return _clean(given.now)
    rows: list[dict[str, Any]] = []
    for entry in run_entries():
        row = {"path": str(entry.path), "topic": entry.topic_name, "model": entry.model_name}
        rows.append({**row, "done": entry.stages_done(), **({"error": entry.error} if entry.error else {})})
    if given.json:
        print(as_json(rows))
    elif not rows:
        say('No runs yet. Next: unlearn run "Harry Potter"')
    for row in [] if given.json else rows:
        if "error" in row:
            print(f"{row['path']:32s} damaged: {one_line(row['error'])}")
            continue
        done = ", ".join(row["done"]) or "nothing done"
        print(f"{row['path']:32s} {row['topic']:24s} {row['model']:12s} {done}")
    return 0


def _clean(now: bool) -> int:
    """Say what killed processes and stages that are done left behind, and remove it if it is to be now."""
    from unlearn_mlx.runs.building import remove, size_of
    from unlearn_mlx.session.catalog import leftovers

    sizes = {path: size_of(path) for path in leftovers()}
    for path, size in sizes.items():
        print(f"{size:16,d}  {path}")
    if now:
        remove(list(sizes))
    done = "were freed" if now else "would be freed: 'unlearn runs clean --now'"
    say(f"{sum(sizes.values()) / 1e6:.1f} MB {done}" if sizes else "Nothing is left over.")
    return 0


def _config(given: argparse.Namespace) -> int:
    from unlearn_mlx.config import PRESETS, Settings, make_settings

    values = {preset: make_settings(preset) for preset in PRESETS}
    print(f"{'setting':16s} " + " ".join(f"{preset:>9s}" for preset in PRESETS) + "  meaning")
    for name, field in Settings.model_fields.items():
        row = " ".join(f"{getattr(values[preset], name)!s:>9s}" for preset in PRESETS)
        print(f"{name.replace('_', '-'):16s} {row}  {field.description}")
    return 0
