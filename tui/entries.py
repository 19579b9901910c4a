"""What there is to open: the runs in this directory, and the adapters that come with the project."""

from dataclasses import dataclass
from pathlib import Path

from unlearn_mlx.cli.rendering import STAGE_NAMES
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.records import Metrics
from unlearn_mlx.evaluation.schema import open_leak, read_metrics
from unlearn_mlx.paths import DATA
from unlearn_mlx.paths import SHIPPED_ADAPTERS as SHIPPED
from unlearn_mlx.runs.run import RUNS, STAGES, Run, open_run, run_path
from unlearn_mlx.topics import Topic, load_topic


@dataclass(frozen=True)
class Entry:
    """A run, or a shipped adapter (then ``run`` is None). ``error`` says what is wrong with it."""

    path: Path
    topic_name: str
    model_name: str
    run: Run | None = None
    before: float | None = None  # share of open questions that leak from the base
    after: float | None = None  # and from the adapter
    error: str = ""

    @property
    def name(self) -> str:
        """What it is called in a line."""
        return f"{self.topic_name} · {self.short_model_name}"

    @property
    def short_model_name(self) -> str:
        """The model without its owner, or the folders that it lies in."""
        return self.model_name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def adapter(self) -> Path | None:
        """The folder of its adapter, or None before training."""
        folder = self.path if self.run is None else self.run.file("adapter")
        return folder if (folder / "adapters.safetensors").exists() else None

    @property
    def topic(self) -> Topic:
        """Its topic, with what the user changed."""
        rows = self.path if self.run else DATA / "synthetic" / self.path.parent.name / self.path.name
        return load_topic(rows / "topic.toml")

    def state(self, is_working: bool) -> str:
        """How far it is: whether it is at work, and on which stage."""
        if self.error:
            return "damaged"
        if self.run is None:
            return "shipped"
        states = [self.run.state_of(stage) or "waiting" for stage in STAGES]
        undone = [stage for stage, state in zip(STAGES, states, strict=True) if state != "done"]
        if not undone:
            return "working" if is_working else "done"
        stage = STAGE_NAMES[undone[0]].lower()
        if is_working:
            return f"working: {stage}"
        words = {"failed": "failed in", "running": "cut off in", "cancelled": "stopped in"}
        return f"{words.get(states[STAGES.index(undone[0])], 'before')} {stage}"


def run_entry(path: Path) -> Entry:
    """The entry of a run directory; one that cannot be opened says why."""
    try:
        run = open_run(path)
        before, after = _leaks(path / "evaluation.json")
        return Entry(path, run.manifest.topic, run.model_name, run, before, after)
    except UserError as error:
        return Entry(path, path.name, "", error=str(error))


def all_entries() -> list[Entry]:
    """The runs, the last changed first, and then the shipped adapters."""
    folders = [path.parent for path in (*RUNS.glob("*/manifest.json"), *RUNS.glob("*/*/manifest.json"))]
    folders.sort(key=_changed, reverse=True)
    return [run_entry(folder) for folder in folders] + shipped_entries()


def shipped_entries() -> list[Entry]:
    """The adapters that come with the project."""
    entries = []
    for path in sorted(SHIPPED.glob("*/*/adapters.safetensors")):
        folder = path.parent
        before, after = _leaks(folder / "metrics.json")
        entry = Entry(folder, folder.name, folder.parent.name, None, before, after)
        try:
            entries.append(Entry(folder, entry.topic.name, entry.model_name, None, before, after))
        except UserError:
            continue
    return entries


def free_path(topic_name: str) -> Path:
    """A directory for a new run on a topic: the usual one, or the first with a number that is free."""
    usual = run_path(topic_name)
    number, path = 2, usual
    while (path / "manifest.json").exists():
        path = usual.with_name(f"{usual.name}-{number}")
        number += 1
    return path


def metrics_of(entry: Entry) -> Metrics | None:
    """An entry's evaluation: with every probe for a run, the metrics alone for a shipped adapter.

    Raises:
        UserError: where the file is damaged.
    """
    paths = [entry.path / name for name in ("evaluation.json", "metrics.json")]
    return next((read_metrics(path) for path in paths if path.exists()), None)


def _leaks(path: Path) -> tuple[float | None, float | None]:
    if not path.exists():
        return None, None
    try:
        metrics = read_metrics(path)
    except UserError:
        return None, None
    key = open_leak(metrics) or ""
    return metrics.base.get(key), metrics.adapter.get(key)


def _changed(folder: Path) -> float:
    events = folder / "events.jsonl"
    return events.stat().st_mtime if events.exists() else (folder / "manifest.json").stat().st_mtime
