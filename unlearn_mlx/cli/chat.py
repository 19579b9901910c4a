"""``unlearn chat``: talk to the base, the adapter or both, toggled in the middle of a conversation."""

import sys
from pathlib import Path

from rich.console import Console

from unlearn_mlx.cli.output import say
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import CONFIGURATION
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.reporting.terminal import plain
from unlearn_mlx.runs.run import find_run
from unlearn_mlx.session.conversation import MODES, Conversation, Manner, Turn

HELP = "/base, /adapter or /both choose who answers; /clear starts anew; /quit ends. Ctrl-C stops an answer."


def chat(name: str, model_name: str | None, temperature: float, max_tokens: int) -> int:
    """Chat until /quit or the end of the input. Returns the exit code.

    Raises:
        UserError: where the run has no adapter.
    """
    folder, model = _adapter_and_model(name, model_name)
    console = Console(highlight=False)
    say(f"Loading {model} ...")
    engine = Engine(model, folder)
    engine.wait_until_ready()
    say(HELP)
    conversation, mode = Conversation(), "adapter"
    while True:
        try:
            line = input(f"{mode}> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            say(HELP)
            continue
        if line in ("/quit", "/exit"):
            break
        if line.startswith("/") and line[1:] in MODES:
            mode = line[1:]
            say(f"Now {mode} answers.")
        elif line == "/clear":
            conversation = Conversation()
        elif line.startswith("/"):
            say(f"No command {line}. {HELP}")
        elif line:
            turn = Turn(line, Manner(MODES[mode], temperature=temperature, max_tokens=max_tokens))
            _answer(engine, console, conversation, turn)
    engine.close()
    return 0


def _adapter_and_model(name: str, model_name: str | None) -> tuple[Path, str]:
    if (Path(name) / CONFIGURATION).exists():
        return Path(name), model_name or "smollm2"
    run = find_run(name)
    if not run.has_adapter:
        raise UserError(f"{run.path} has no adapter yet: run 'unlearn run \"{run.manifest.topic}\"' first")
    return run.file("adapter"), run.model_name


def _answer(engine: Engine, console: Console, conversation: Conversation, turn: Turn) -> None:
    modes = turn.manner.modes
    answering = conversation.ask(engine, turn)
    try:
        for piece in answering:
            turn.take(piece)
            if len(modes) == 1:
                console.print(plain(piece.text), end="", soft_wrap=True)
        turn.state = "answered"
    except KeyboardInterrupt:
        turn.stop()
        for _ in answering:
            pass
        print(" [stopped]", end="", file=sys.stderr)
    if len(modes) > 1:
        for mode in modes:
            console.print(plain(f"{mode}: {turn.replies[mode].text.strip()}"), soft_wrap=True)
    console.print()
