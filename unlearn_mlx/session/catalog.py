"""What there is to open: the runs in this directory, and the adapters that come with the project."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe, probe_files, read_probes
from unlearn_mlx.evaluation.records import Audit, Evaluation, Metrics, ScoredProbe
from unlearn_mlx.evaluation.schema import SCOPES, metrics_of, open_leak, read_audit, read_metrics
from unlearn_mlx.paths import SHIPPED_ADAPTERS, cache_folder
from unlearn_mlx.runs.adapter_files import is_adapter, results_belong
from unlearn_mlx.runs.building import leftovers_below, leftovers_in
from unlearn_mlx.runs.finding import find_run
from unlearn_mlx.runs.records import Event, read_events
from unlearn_mlx.runs.run import RUNS, STAGES, Run, open_run
from unlearn_mlx.runs.shipped import is_shipped, rows_of, shipped_adapters, shipped_folder, shipped_run
from unlearn_mlx.session.progress import STAGE_NAMES
from unlearn_mlx.topics import Topic, load_topic

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
        """The folder of its adapter, or None before training has finished."""
        if self.run is None:
            return self.path if is_adapter(self.path) else None
        return self.run.file("adapter") if self.run.has_adapter else None

    @property
    def rows(self) -> Path:
        """The folder of the questions and answers that it was made from."""
        return rows_of(self.path) if self.is_shipped else self.path

    def as_run(self) -> Run:
        """Its run; a shipped adapter read like one.

        Raises:
            UserError: where its files are damaged.
        """
        return self.run or shipped_run(self.path)

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

        What was measured of another adapter than the one that is there is none of its own.

        Raises:
            UserError: where the file is damaged.
        """
        paths = [*self._files("evaluation.json"), *self._files("metrics.json")]
        return metrics_of(self.path, paths[0]) if paths else None

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
        _ = run.topic
    except UserError as error:
        return replace(entry, error=str(error))
    return entry


def opened_entry(name: str) -> Entry | None:
    """The entry that a user names: a run by its path, topic or slug, or a shipped adapter by its folder.

    None for a folder with an adapter that is neither.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    folder = shipped_folder(name) or Path(name)
    if not is_adapter(folder):
        run = find_run(name)
        entry = run_entry(run.path)
        if entry.error:
            raise UserError(entry.error)
        return entry
    shipped = [entry for entry in shipped_entries() if entry.path.resolve() == folder.resolve()]
    return shipped[0] if shipped else None


def run_entries() -> list[Entry]:
    """The runs in this directory by name, those one folder further down too, and what cannot be opened."""
    manifests = [*RUNS.glob("*/manifest.json"), *RUNS.glob("*/*/manifest.json")]
    folders = sorted(path.parent for path in manifests)
    # What begins with a dot is a system's or a half-made one.
    return [run_entry(folder) for folder in folders if not any(part[0] == "." for part in folder.parts)]


def leftovers() -> list[Path]:
    """What nothing needs any longer, in the runs of this directory, beside them and in the cache.

    Killed processes leave it behind, and stages that are done.
    """
    runs = [entry.run for entry in run_entries() if entry.run is not None]
    places = sorted({RUNS, *(run.path.parent for run in runs)})
    found = [path for place in places for path in leftovers_in(place)]
    found += [path for run in runs for path in run.leftovers()]
    return [*found, *leftovers_below(cache_folder())]


def entry_at(path: Path) -> Entry:
    """The entry of a run directory or of a shipped adapter."""
    return (_shipped_entry(path) if is_shipped(path) else None) or run_entry(path)


def shipped_entries() -> list[Entry]:
    """The adapters that come with the project."""
    return [entry for folder in shipped_adapters() if (entry := _shipped_entry(folder))]


def _shipped_entry(folder: Path) -> Entry | None:
    """The entry of an adapter that comes with the project; None where its topic is damaged."""
    try:
        topic = load_topic(rows_of(folder) / "topic.toml")
    except UserError:
        return None
    model_name = folder.resolve().parent.name
    return Entry(folder, topic.name, model_name, None, *_leaks(folder / "metrics.json"))


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


def _leaks(path: Path) -> tuple[float | None, float | None]:
    try:
        status = path.stat()
    except OSError:
        return None, None
    sha256, before, after = _leaks_as_of(path.resolve(), status.st_mtime_ns, status.st_size)
    return (before, after) if results_belong(sha256, path.parent) else (None, None)


@lru_cache(maxsize=256)
def _leaks_as_of(path: Path, changed: int, size: int) -> tuple[str, float | None, float | None]:
    """Whose they are, and the two shares, in a file of megabytes, which faces look at again and again."""
    try:
        metrics = read_metrics(path)
    except UserError:
        return "", None, None
    key = open_leak(metrics) or ""
    return metrics.adapter_sha256, metrics.base.get(key), metrics.adapter.get(key)
