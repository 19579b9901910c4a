"""What there is to open: the runs in this directory, and the adapters that come with the project."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe, probe_files, read_probes
from unlearn_mlx.evaluation.records import Audit, Evaluation, Metrics, ScoredProbe
from unlearn_mlx.evaluation.schema import SCOPES, open_leak, read_audit, read_metrics
from unlearn_mlx.paths import DATA, SHIPPED_ADAPTERS
from unlearn_mlx.runs.records import Event, read_events
from unlearn_mlx.runs.run import RUNS, STAGES, Run, open_run
from unlearn_mlx.session.progress import STAGE_NAMES
from unlearn_mlx.topics import Topic, load_topic

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")
STATE_WORDS = {"failed": "failed in", "running": "cut off in", "cancelled": "stopped in"}


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
    def key(self) -> str:
        """What tells it from all others, with the same slashes on every system."""
        path = self.path.relative_to(SHIPPED_ADAPTERS.parent) if self.is_shipped else self.path
        return "/".join(path.parts)

    @property
    def is_shipped(self) -> bool:
        """Whether it comes with the project."""
        return self.run is None and not self.error

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
        return folder if all((folder / name).exists() for name in ADAPTER_FILES) else None

    @property
    def rows(self) -> Path:
        """The folder of the questions and answers that it was made from."""
        return self.path if self.run else _shipped_rows(self.path)

    @property
    def topic(self) -> Topic:
        """Its topic as the file says it now, with what the user changed.

        Raises:
            UserError: where the file is damaged.
        """
        return load_topic(self.rows / "topic.toml")

    @property
    def changed(self) -> float:
        """The clock of its last progress; 0 where that cannot be told."""
        for name in ("events.jsonl", "manifest.json"):
            try:
                return (self.path / name).stat().st_mtime
            except OSError:
                continue
        return 0.0

    def stages_done(self) -> list[str]:
        """The stages of its run that are done."""
        return [stage for stage in STAGES if self.run and self.run.stage_is_done(stage)]

    def stages_undone(self) -> list[str]:
        """The stages of its run that are not done yet."""
        return [stage for stage in STAGES if self.run and not self.run.stage_is_done(stage)]

    def state(self, is_working: bool) -> str:
        """How far it is: whether it is at work, and on which stage."""
        if self.error:
            return "damaged"
        if self.run is None:
            return "shipped"
        undone = self.stages_undone()
        if not undone:
            return "working" if is_working else "done"
        stage = STAGE_NAMES[undone[0]].lower()
        if is_working:
            return f"working: {stage}"
        return f"{STATE_WORDS.get(self.run.state_of(undone[0]), 'before')} {stage}"

    def evaluation(self) -> Metrics | None:
        """Its evaluation: one with every probe where that is there, else the metrics alone, or None.

        Raises:
            UserError: where the file is damaged.
        """
        paths = [*self._files("evaluation.json"), *self._files("metrics.json")]
        return read_metrics(paths[0]) if paths else None

    def readable_evaluation(self) -> Metrics | None:
        """Its evaluation; None where there is none or it is damaged."""
        try:
            return self.evaluation()
        except UserError:
            return None

    def scored_probes(self) -> list[ScoredProbe]:
        """The probes of its evaluation; none where that has none, or is damaged."""
        found = self.readable_evaluation()
        return found.probes if isinstance(found, Evaluation) else []

    def audit(self) -> Audit | None:
        """Its audit, where one was made.

        Raises:
            UserError: where the file is damaged.
        """
        return read_audit(self.path)

    def events(self) -> list[Event]:
        """The progress of its run, as far as it was kept.

        Raises:
            UserError: where a line is damaged.
        """
        return next(filter(None, (read_events(path) for path in self._files("events.jsonl"))), [])

    def probes(self) -> list[Probe]:
        """The questions that it is judged on."""
        own = self.rows / "probes.jsonl"
        files = [*([own] if own.exists() else []), *probe_files(self.topic)]
        every = [probe for path in files for probe in read_probes(path)]
        asked = {probe.id for probe in self.scored_probes()}
        return [probe for probe in every if not asked or probe.id in asked]

    def seed(self) -> int:
        """The seed that its run was made with."""
        made = self.run.manifest if self.run else self.readable_evaluation()
        seed = made.settings.get("seed") if made else None
        return seed if isinstance(seed, int) else 0

    def _files(self, name: str) -> list[Path]:
        """A file of the run, or of its rows and its adapter where it is shipped."""
        return [path for path in dict.fromkeys((self.rows / name, self.path / name)) if path.exists()]


def run_entry(path: Path) -> Entry:
    """The entry of a run directory; one that cannot be opened says why."""
    try:
        run = open_run(path)
        before, after = _leaks(path / "evaluation.json")
        entry = Entry(path, run.manifest.topic, run.model_name, run, before, after)
    except UserError as error:
        return Entry(path, path.name, "", error=str(error))
    try:
        load_topic(run.file("topic.toml"))
    except UserError as error:
        return replace(entry, error=str(error))
    return entry


def run_entries() -> list[Entry]:
    """The runs in this directory by name, those one folder further down too, and what cannot be opened."""
    manifests = [*RUNS.glob("*/manifest.json"), *RUNS.glob("*/*/manifest.json")]
    folders = sorted(path.parent for path in manifests)
    # What begins with a dot is a system's or a half-made one.
    return [run_entry(folder) for folder in folders if not any(part[0] == "." for part in folder.parts)]


def shipped_entries() -> list[Entry]:
    """The adapters that come with the project."""
    entries = []
    for path in sorted(SHIPPED_ADAPTERS.glob("*/*/adapters.safetensors")):
        folder = path.parent
        try:
            topic = load_topic(_shipped_rows(folder) / "topic.toml")
        except UserError:
            continue
        entries.append(Entry(folder, topic.name, folder.parent.name, None, *_leaks(folder / "metrics.json")))
    return entries


def example_questions(entry: Entry, count: int = 3) -> dict[str, list[str]]:
    """Questions to try, by scope: such as the base can answer, where that was measured."""
    known = {probe.id for probe in entry.scored_probes() if probe.shows("base")}
    plain = [probe for probe in entry.probes() if probe.form == QUESTION_ANSWER]
    questions: dict[str, list[str]] = {}
    for scope in SCOPES:
        own = [probe for probe in plain if probe.scope == scope]
        own = [probe for probe in own if probe.id in known] or own
        # Spread over the file: what stands together in it is alike.
        questions[scope] = [
            own[len(own) * number // count].question for number in range(min(count, len(own)))
        ]
    return questions


def _shipped_rows(adapter: Path) -> Path:
    return DATA / "synthetic" / adapter.parent.name / adapter.name


def _leaks(path: Path) -> tuple[float | None, float | None]:
    try:
        status = path.stat()
    except OSError:
        return None, None
    return _leaks_as_of(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _leaks_as_of(path: Path, changed: int, size: int) -> tuple[float | None, float | None]:
    """The two shares in a file of megabytes, which faces look at again and again."""
    try:
        metrics = read_metrics(path)
    except UserError:
        return None, None
    key = open_leak(metrics) or ""
    return metrics.base.get(key), metrics.adapter.get(key)
