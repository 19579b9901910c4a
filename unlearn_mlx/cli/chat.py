"""``unlearn chat``: talk to the base, the adapter or both, toggled in the middle of a conversation."""

import sys
from pathlib import Path

from rich.console import Console

from unlearn_mlx.cli.rendering import plain
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import CONFIGURATION
from unlearn_mlx.inference.engine import Engine, Mode, context_of
from unlearn_mlx.runs.run import find_run

HELP = "/base, /adapter or /both choose who answers; /clear starts anew; /quit ends. Ctrl-C stops an answer."


def chat(name: str, model_name: str | None, temperature: float, max_tokens: int) -> int:
    """Chat until /quit or the end of the input. Returns the exit code.

    Raises:
        UserError: where the run has no adapter.
    """
    folder, model = _adapter_and_model(name, model_name)
    console = Console(highlight=False)
    print(f"Loading {model} ...", file=sys.stderr)
    engine = Engine(model, folder)
    engine.wait_until_ready()
    print(HELP, file=sys.stderr)
    # Each mode has its own history: what the other one said is no word of its own.
    histories: dict[Mode, list[dict[str, str]]] = {"base": [], "adapter": []}
    mode: Mode = "adapter"
    while True:
        try:
            line = input(f"{mode}> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            print(HELP, file=sys.stderr)
            continue
        if line in ("/quit", "/exit"):
            break
        if line in ("/base", "/adapter", "/both"):
            mode = line[1:]
            print(f"Now {mode} answers.", file=sys.stderr)
        elif line == "/clear":
            histories = {"base": [], "adapter": []}
        elif line.startswith("/"):
            print(f"No command {line}. {HELP}", file=sys.stderr)
        elif line:
            _answer(engine, console, histories, mode, line, temperature, max_tokens)
    engine.close()
    return 0


def _adapter_and_model(name: str, model_name: str | None) -> tuple[Path, str]:
    if (Path(name) / CONFIGURATION).exists():
        return Path(name), model_name or "smollm2"
    run = find_run(name)
    if not run.has_adapter:
        raise UserError(f"{run.path} has no adapter yet: run 'unlearn run \"{run.manifest.topic}\"' first")
    return run.file("adapter"), run.model_name


def _answer(
    engine: Engine,
    console: Console,
    histories: dict[Mode, list[dict[str, str]]],
    mode: Mode,
    question: str,
    temperature: float,
    max_tokens: int,
) -> None:
    modes = ["base", "adapter"] if mode == "both" else [mode]
    asked = {one: context_of(histories[one], question) for one in modes}
    answering = engine.answer(asked, temperature, max_tokens)
    texts = dict.fromkeys(modes, "")
    try:
        for piece in answering:
            texts[piece.mode] += piece.text
            if len(modes) == 1:
                console.print(plain(piece.text), end="", soft_wrap=True)
    except KeyboardInterrupt:
        answering.cancel()
        for _ in answering:
            pass
        print(" [stopped]", end="", file=sys.stderr)
    for one in modes:
        if len(modes) > 1:
            console.print(plain(f"{one}: {texts[one].strip()}"), soft_wrap=True)
        histories[one] = [*asked[one], {"role": "assistant", "content": texts[one].strip()}]
    console.print()
