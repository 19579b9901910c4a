"""Every command in surroundings that lack something: it ends with an answer or one line, no traceback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.evaluated import USUAL, evaluation_of, write_evaluation
from tests.helpers import run_with_dataset, strong_adapter, write_tiny_model
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.runs.run import AFTER, STAGES

RUN = "runs/harry-potter"
MODEL = "{model}"  # stands for the model's folder

# Every command that the help lists, as far as it goes without a network.
COMMANDS: Sequence[Sequence[str]] = (
    (),
    ("config",),
    ("runs",),
    ("runs", "--json"),
    ("runs", "clean", "--now"),
    ("show", RUN),
    ("show", RUN, "--json"),
    ("compare", RUN),
    ("judge", RUN),
    ("judge", RUN, "--json"),
    ("models",),
    ("models", "verify", "llama3"),
    ("tui",),
    ("demo", "--port", "99999"),
)
# Those that load mlx, draw charts or start a worker, which takes seconds.
SLOW_COMMANDS: Sequence[Sequence[str]] = (
    ("doctor",),
    ("report", RUN),
    ("compare", RUN, "--html", "page.html"),
    ("push", RUN, "owner/name", "--dry-run"),
    ("bench", "no-such-benchmark"),
    ("import", "nowhere", "--topic", "Owls"),
    ("serve", RUN, "--port", "99999"),
    ("run", "Harry Potter", "--model", MODEL, "--dry-run"),
    ("questions", "Harry Potter", "--model", MODEL, "--preset", "quick"),
    ("answers", RUN),
    ("train", RUN),
    ("evaluate", RUN, "--gate", "leak<=1"),
    ("audit", RUN),
    ("benchmark", RUN, "no-such-task"),
    ("chat", RUN, "--max-tokens", "2"),
    ("export", RUN, "--out", "exported"),
)

# All commands one after another in one process: what each ends with stands behind it.
_IN_TURN = """
import json, sys
from unlearn_mlx.cli import entry
entry.prepare()
from unlearn_mlx.cli.main import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    print(f"== {code} {words}", file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Surroundings:
    """What a command finds around it. ``redirected`` is the shell's, such as "<&-"."""

    environment: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()  # variables that are not set
    redirected: str = ""
    given: bytes = b""  # on standard input
    is_deleted: bool = False  # the working directory
    expected: Sequence[int] = (0, 1, 2, 3)


NOWHERE = {"HOME": "/dev/null/home", "TERM": "dumb", "COLUMNS": "20"}  # a home where nothing can be written
CACHES = ("UNLEARN_CACHE", "XDG_CACHE_HOME", "HF_HOME")
BROKEN = {
    "nothing to write to, ASCII and no input": Surroundings(
        {**NOWHERE, "LANG": "C", "PYTHONIOENCODING": "ascii"}, CACHES, redirected="<&-"
    ),
    "no home, a foreign encoding, input that is no text, a full output": Surroundings(
        {"PYTHONIOENCODING": "latin-1", "COLUMNS": "1"},
        ("HOME", *CACHES),
        redirected=">/dev/full",
        given=b"Who is \xff\xfe?\n\x00\n",
    ),
    "a directory that was deleted, and closed output": Surroundings(is_deleted=True, redirected=">&-"),
}
ALONE = {
    "no input": Surroundings(redirected="<&-"),
    "closed output": Surroundings(redirected=">&-"),
    "everything closed": Surroundings(redirected="<&- >&-"),
    "a full output": Surroundings(redirected=">/dev/full"),
    "a reader who left": Surroundings(redirected="| true"),
    "input that is no text": Surroundings(given=b"Who is \xff\xfe?\n\x00\n"),
    "nothing to write to": Surroundings(NOWHERE, CACHES),
    "no home": Surroundings(without=("HOME",)),
    "ASCII": Surroundings({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}),
    "a foreign encoding": Surroundings({"PYTHONIOENCODING": "cp437"}),
    "a narrow terminal": Surroundings({"COLUMNS": "1", "LINES": "1", "TERM": "dumb"}),
    "a directory that was deleted": Surroundings(is_deleted=True),
}


def prepare(folder: Path, model_folder: Path) -> None:
    """A finished run in ``folder``, as every command takes it."""
    run = run_with_dataset(folder / RUN, model_folder)
    with load_by_name(str(model_folder)) as model:
        strong_adapter(model).save(run.file("adapter"))
    write_evaluation(run, evaluation_of(*USUAL))
    rows = [{"name": "adapter", "group": "plain", "leak": 0.25}]
    run.file("audit.json").write_text(json.dumps({"key": "", "rows": rows, "text": "Nothing came back."}))
    for stage in (*STAGES, *AFTER):
        run.mark(stage, "done")
    # What macOS leaves on a disk of another system.
    for place in (folder / "runs", run.path, run.file("dataset")):
        (place / "._x").write_bytes(b"\x00\x05\x16\x07")
        (place / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")


def faults_in(
    surroundings: Surroundings, commands: Sequence[Sequence[str]], folder: Path, model_folder: Path
) -> list[str]:
    """What goes wrong where the commands are called there, one after another; empty where nothing does."""
    told = [[word.replace(MODEL, str(model_folder)) for word in words] for words in commands]
    environment = {**os.environ, **surroundings.environment, "PYTHONPATH": os.getcwd()}
    for name in surroundings.without:
        environment.pop(name, None)
    gone = folder / "gone"
    script = f'"$0" -c "$1" "$2" {surroundings.redirected}'
    if surroundings.is_deleted:
        gone.mkdir()
        script = 'rmdir "$PWD"; ' + script
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, _IN_TURN, json.dumps(told)],
        cwd=gone if surroundings.is_deleted else folder,
        input=surroundings.given,
        capture_output=True,
        env=environment,
        timeout=600,
    )
    shutil.rmtree(folder / "exported", ignore_errors=True)
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    faults = [line for line in said.splitlines() if "Traceback" in line or "Exception ignored" in line]
    ends = [line for line in said.splitlines() if line.startswith("== ")]
    faults += [line for line in ends if int(line.split()[1]) not in surroundings.expected]
    if len(ends) != len(commands):
        faults.append(f"only {len(ends)} of {len(commands)} commands came to an end (code {done.returncode})")
    return [*faults, said] if faults else []


def main() -> int:
    """Every command in all surroundings, one at a time, and say what was found."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="unlearn-surroundings-") as folder:
        place, model_folder = Path(folder) / "place", write_tiny_model(Path(folder) / "model")
        prepare(place, model_folder)
        every = (*COMMANDS, *SLOW_COMMANDS)
        for name, around in {**BROKEN, **ALONE}.items():
            faults = [fault for words in every for fault in faults_in(around, [words], place, model_folder)]
            print(f"{name}: {len(every)} commands, {len(faults)} faults", flush=True)
            print("".join(f"  {fault[-600:]}\n" for fault in faults), end="", flush=True)
            failed += len(faults)
    return int(failed > 0)
