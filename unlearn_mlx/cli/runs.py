"""Commands that make runs, work on them, and say what there is."""

import argparse
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_mlx.cli.output import say
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError
from unlearn_mlx.evaluation.gate import GATED, Gate, gate_answers, gate_value, parse_gates

if TYPE_CHECKING:
    from unlearn_mlx.session.create import NewRun

GATE_FAILED = 1
LOOK = 0.2  # seconds between two looks at a worker and its events


def add_stage_commands(add: Callable[..., argparse.ArgumentParser], named: str) -> None:
    """Add those that work on a run; only the command ``named`` gets an option for every setting."""
    run = add("run", _run, "do everything: questions, answers, training, evaluation")
    if named == "run":
        _add_making(run)
    run.add_argument("--dry-run", action="store_true", help="show the plan and end")
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
    runs = add("runs", _runs, "list the runs")
    runs.add_argument("--json", action="store_true", help="print JSON")
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

    if given.dry_run:
        wanted = _new_run(given)
        plan, device = wanted.plan(), current_device()
        topic = wanted.topic
        print(f"topic    {topic.name} ({len(topic.names)} names, {len(topic.neighbours)} neighbours)")
        print(f"model    {wanted.model_name} on {device.backend} ({device.name})")
        print(f"into     {wanted.path}")
        print("\n".join(plan))
        for key, value in wanted.settings.model_dump().items():
            print(f"{key:16s} {value}")
        return 0
    run = _new_run(given).make()
    code = _follow(run.path, STAGES)
    return code or _show_run(run.path, next_command=f'unlearn chat "{run.path}"')


def _stage(given: argparse.Namespace) -> int:
    from unlearn_mlx.pipeline import reset_from
    from unlearn_mlx.runs.run import AFTER, STAGES, find_run

    stage = given.stage
    gates = parse_gates(given.gate) if getattr(given, "gate", None) is not None else []
    run = _new_run(given).make() if stage == "questions" else find_run(given.run)
    every = (*STAGES, *AFTER)
    for earlier in every[: every.index(stage)]:
        if not run.stage_is_done(earlier):
            raise UserError(
                f"{run.path}: '{earlier}' is not done yet: run 'unlearn {earlier} {run.path}' first"
            )
    if given.again:
        with run.writing():
            reset_from(run, stage)
    code = _follow(run.path, [stage])
    if code:
        return code
    if stage == "evaluate":
        _show_run(run.path, next_command=f'unlearn chat "{run.path}"', as_json=given.json)
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


def _follow(path: Path, stages: Sequence[str]) -> int:
    """Start a worker, show its progress, pass Ctrl-C on. Returns 0 once it is done.

    Raises:
        UserError: what the worker ended with.
        Cancelled: where it was stopped.
    """
    from unlearn_mlx.cli.rendering import EventView, stderr_console
    from unlearn_mlx.session.processes import how_it_ended, start_worker
    from unlearn_mlx.session.progress import Progress

    # What lies there from an earlier attempt has been shown then.
    progress = Progress(path, only_new=True)
    with EventView(progress, stderr_console()) as view:
        worker = start_worker(path, stages)
        asked = 0
        while True:
            try:
                code = worker.poll()
                view.update()
                if code is not None:
                    break
                time.sleep(LOOK)
            except KeyboardInterrupt:
                asked += 1
                if asked == 1:
                    say("Stopping at the next safe point (Ctrl-C again to stop at once) ...")
                    worker.send_signal(signal.SIGINT)
                else:
                    worker.kill()
    # A second process that was refused writes its error into the same events; it is not ours.
    if progress.error and code and code == progress.error_code:
        raise _error(progress.error, code)
    if code == Cancelled.exit_code or asked:
        raise Cancelled
    if code:
        raise EnvironmentCannot(
            f"the worker {how_it_ended(code)}; see {path / 'worker.log'}, and run the same command to go on"
        )
    return 0


def _error(text: str, code: int) -> UserError:
    return EnvironmentCannot(text) if code == EnvironmentCannot.exit_code else UserError(text)


def _show_run(path: Path, next_command: str = "", as_json: bool = False) -> int:
    from unlearn_mlx.cli.rendering import show_acceptance, show_result
    from unlearn_mlx.evaluation.schema import read_evaluation
    from unlearn_mlx.runs.records import read_events
    from unlearn_mlx.text.printable import as_json as to_json

    evaluation = read_evaluation(path)
    if as_json:
        print(to_json(evaluation.as_row()))
        return 0
    show_result(evaluation)
    show_acceptance(read_events(path / "events.jsonl"))
    say(f"\nEverything lies in {path} (the adapter in {path / 'adapter'}).")
    if (path / "report.html").exists():
        say(f"The report, with every answer: {path / 'report.html'}")
    if next_command:
        say(f"Next: {next_command}")
    return 0


def _show(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.run import find_run

    return _show_run(find_run(given.run).path, as_json=given.json)


def _runs(given: argparse.Namespace) -> int:
    from unlearn_mlx.session.catalog import run_entries
    from unlearn_mlx.text.printable import as_json, one_line

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


def _config(given: argparse.Namespace) -> int:
    from unlearn_mlx.config import PRESETS, Settings, make_settings

    values = {preset: make_settings(preset) for preset in PRESETS}
    print(f"{'setting':16s} " + " ".join(f"{preset:>9s}" for preset in PRESETS) + "  meaning")
    for name, field in Settings.model_fields.items():
        row = " ".join(f"{getattr(values[preset], name)!s:>9s}" for preset in PRESETS)
        print(f"{name.replace('_', '-'):16s} {row}  {field.description}")
    return 0
