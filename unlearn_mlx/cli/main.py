"""The ``unlearn`` command."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unlearn_mlx import __version__
from unlearn_mlx.cli import apps, evaluation, models
from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import Cancelled, EnvironmentCannot, UserError
from unlearn_mlx.evaluation.gate import GATED, Gate, gate_answers, gate_value, parse_gates

GATE_FAILED = 1
COMMAND_ERROR = 2

# Commands that compute in this process; others leave it to processes of their own, or compute nothing.
COMPUTING = ("run", "chat", "tui", "benchmark", "export", "import", "serve", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit code: 0 done, 1 a gate failed, 2 usage, 3 the machine cannot, 130 cancelled.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(words)
    given = parser.parse_args(words)
    if not hasattr(given, "function"):
        parser.print_help()
        return 0
    if given.command in COMPUTING:
        prepare_cpu()
    try:
        code: int = given.function(given)
        return code
    except UserError as error:
        print(f"unlearn: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, Cancelled):
        print("unlearn: cancelled; the same command goes on where it stopped", file=sys.stderr)
        return Cancelled.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"unlearn: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return EnvironmentCannot.exit_code


def make_data(arguments: Sequence[str]) -> int:
    """``unlearn questions`` and, where that went well, ``unlearn answers`` on the same run."""
    code = main(["questions", *arguments])
    if code:
        return code
    from unlearn_mlx.runs.run import run_path
    from unlearn_mlx.topics import checked_name, shipped_topic

    words = ["questions", *arguments]
    given = _parser(words).parse_args(words)
    topic = shipped_topic(given.topic)
    return main(["answers", str(run_path(topic.name if topic else checked_name(given.topic), given.out))])


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, not a screen of options."""

    def error(self, message: str) -> NoReturn:
        self.exit(COMMAND_ERROR, f"unlearn: {message}; see '{self.prog} --help'\n")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these words; only the command they name gets an option for every setting."""
    # Settings need pydantic, which takes longer to import than all of the help takes to print.
    named = next((word for word in words if not word.startswith("-")), "")
    parser = _Parser(
        prog="unlearn",
        description="A local language model forgets a topic, from nothing but the topic's name.",
    )
    parser.add_argument("--version", action="version", version=f"unlearn-mlx {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(function=function, command=name)
        return command

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
    chat = add("chat", _chat, "chat with the base and the adapter")
    chat.add_argument("run", metavar="RUN", help="a run's directory, a topic, or an adapter's directory")
    chat.add_argument("--model", help="the model, where RUN is an adapter's directory")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    chat.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    runs = add("runs", _runs, "list the runs")
    runs.add_argument("--json", action="store_true", help="print JSON")
    show = add("show", _show, "show a run's result")
    show.add_argument("run", metavar="RUN")
    show.add_argument("--json", action="store_true", help="print JSON")
    add("config", _config, "list every setting with its meaning and its value in each preset")
    add("doctor", _doctor, "say what this machine computes with, and what is missing")
    for module in (evaluation, models, apps):
        module.add_commands(add)
    return parser


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


def _make_run(given: argparse.Namespace) -> Any:
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.config import Settings, make_settings
    from unlearn_mlx.models.registry import default_model, resolve_model
    from unlearn_mlx.runs.run import create_run, run_path
    from unlearn_mlx.topics import Topic, checked_name, load_topic, shipped_topic

    name = checked_name(given.topic)
    settings = make_settings(given.preset, **{key: getattr(given, key) for key in Settings.model_fields})
    shipped = shipped_topic(name)
    topic = shipped or Topic(name)
    path = run_path(topic.name, given.out)
    if (path / "topic.toml").exists():
        edited = load_topic(path / "topic.toml")
        if edited.name != topic.name:
            raise UserError(f"{path} belongs to the topic '{edited.name}': use '--out' for another directory")
        topic = edited
    if given.model:
        model_name, reason = given.model, "as asked"
    else:
        model_name, reason = default_model()
    _say(f"Model: {model_name} ({reason}; change it with --model)")
    device = current_device()
    if getattr(given, "dry_run", False):
        return topic, settings, model_name, path, device
    source = resolve_model(model_name)
    model = {"name": source.name, "revision": source.revision, "sha256": source.weights_sha256}
    return create_run(path, topic, model, settings, f"{device.backend}: {device.name}")


def _run(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.run import STAGES

    if given.dry_run:
        topic, settings, model_name, path, device = _make_run(given)
        planned = _planned(model_name, settings, device)
        print(f"topic    {topic.name} ({len(topic.names)} names, {len(topic.neighbours)} neighbours)")
        print(f"model    {model_name} on {device.backend} ({device.name})")
        print(f"into     {path}")
        print("\n".join(planned))
        for key, value in settings.model_dump().items():
            print(f"{key:16s} {value}")
        return 0
    run = _make_run(given)
    code = _follow(run.path, STAGES)
    return code or _show_run(run.path, next_command=f'unlearn chat "{run.path}"')


def _planned(model_name: str, settings: Any, device: Any) -> list[str]:
    """Memory and time of a run; of a model that is not here yet, what is known without it."""
    from unlearn_mlx.compute.memory import GIGABYTE
    from unlearn_mlx.compute.planner import multiplication_rate, plan, shape_of
    from unlearn_mlx.models.registry import named_model, resolve_model, to_fetch

    room = f"{device.memory_bytes / GIGABYTE:.0f} GB"
    if download := to_fetch(model_name):
        known = named_model(model_name)
        memory = (
            f"up to {known.memory_bytes / GIGABYTE:.0f} GB of {room}" if known else "known once it is here"
        )
        return [f"download {download}: 'unlearn models pull {model_name}'", f"memory   {memory}"]
    planned = plan(shape_of(resolve_model(model_name).folder), settings, device, multiplication_rate())
    stages = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in planned.seconds.items())
    return [
        f"memory   about {planned.memory / GIGABYTE:.1f} GB of {room}",
        f"time     about {sum(planned.seconds.values()) / 60:.0f} minutes ({stages})",
    ]


def _stage(given: argparse.Namespace) -> int:
    from unlearn_mlx.pipeline import reset_from
    from unlearn_mlx.runs.run import AFTER, STAGES, find_run

    stage = given.stage
    gates = parse_gates(given.gate) if getattr(given, "gate", None) is not None else []
    run = _make_run(given) if stage == "questions" else find_run(given.run)
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
    _say(f'In {run.path}. Next: unlearn {later} "{run.path}"')
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
        _say(f"gate {gate}: {told}, {'holds' if held[-1] else 'FAILS'}")
    return 0 if all(held) else GATE_FAILED


def _follow(path: Path, stages: Sequence[str]) -> int:
    """Start the child process, show its progress, pass Ctrl-C on. Returns its exit code."""
    from unlearn_mlx.cli.rendering import EventView, stderr_console
    from unlearn_mlx.pipeline import start_child

    with EventView(path / "events.jsonl", stderr_console()) as view:
        child = start_child(path, stages)
        asked = 0
        while True:
            try:
                code = child.poll()
                view.update()
                if code is not None:
                    break
                time.sleep(0.2)
            except KeyboardInterrupt:
                asked += 1
                if asked == 1:
                    _say("Stopping at the next safe point (Ctrl-C again to stop at once) ...")
                    child.send_signal(signal.SIGINT)
                else:
                    child.kill()
    # A second process that was refused writes its error into the same events; it is not ours.
    if view.error and code == view.error["exit_code"]:
        raise _error(str(view.error["text"]), int(view.error["exit_code"]))
    if code == Cancelled.exit_code or asked:
        raise Cancelled
    if code:
        how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"failed with code {code}"
        raise EnvironmentCannot(
            f"the worker {how}; see {path / 'worker.log'}, and run the same command to go on"
        )
    return 0


def _error(text: str, code: int) -> UserError:
    return EnvironmentCannot(text) if code == EnvironmentCannot.exit_code else UserError(text)


def _show_run(path: Path, next_command: str = "", as_json: bool = False) -> int:
    from unlearn_mlx.cli.rendering import show_acceptance, show_result
    from unlearn_mlx.evaluation.schema import read_evaluation
    from unlearn_mlx.runs.records import read_events
    from unlearn_mlx.runs.run import as_json as to_json

    evaluation = read_evaluation(path)
    if as_json:
        print(to_json(evaluation.as_row()))
        return 0
    show_result(evaluation)
    show_acceptance(read_events(path / "events.jsonl"))
    _say(f"\nEverything lies in {path} (the adapter in {path / 'adapter'}).")
    if (path / "report.html").exists():
        _say(f"The report, with every answer: {path / 'report.html'}")
    if next_command:
        _say(f"Next: {next_command}")
    return 0


def _show(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.run import find_run

    return _show_run(find_run(given.run).path, as_json=given.json)


def _runs(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.run import STAGES, all_runs, as_json

    rows = []
    for run in all_runs():
        done = [stage for stage in STAGES if run.stage_is_done(stage)]
        rows.append(
            {"path": str(run.path), "topic": run.manifest.topic, "model": run.model_name, "done": done}
        )
    if given.json:
        print(as_json(rows))
    elif not rows:
        _say('No runs yet. Next: unlearn run "Harry Potter"')
    else:
        for row in rows:
            print(
                f"{row['path']:32s} {row['topic']:24s} {row['model']:12s} "
                + (", ".join(row["done"]) or "nothing done")
            )
    return 0


def _config(given: argparse.Namespace) -> int:
    from unlearn_mlx.config import PRESETS, Settings, make_settings

    values = {preset: make_settings(preset) for preset in PRESETS}
    print(f"{'setting':16s} " + " ".join(f"{preset:>9s}" for preset in PRESETS) + "  meaning")
    for name, field in Settings.model_fields.items():
        row = " ".join(f"{getattr(values[preset], name)!s:>9s}" for preset in PRESETS)
        print(f"{name.replace('_', '-'):16s} {row}  {field.description}")
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli.doctor import findings

    found = findings()
    for finding in found:
        print(f"{finding.name:12s}{finding.text}")
    wrong = [finding for finding in found if finding.advice]
    for finding in wrong:
        _say(f"{finding.name}: {finding.advice}")
    return EnvironmentCannot.exit_code if wrong else 0


def _chat(given: argparse.Namespace) -> int:
    from unlearn_mlx.cli.chat import chat

    return chat(given.run, given.model, given.temperature, given.max_tokens)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
