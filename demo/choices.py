"""Which adapters there are to show: those that the project ships, and the runs in this directory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe, probe_files, read_probes
from unlearn_mlx.evaluation.records import Audit, Evaluation, Metrics, ScoredProbe
from unlearn_mlx.evaluation.schema import SCOPES, read_audit, read_metrics
from unlearn_mlx.paths import DATA
from unlearn_mlx.paths import SHIPPED_ADAPTERS as SHIPPED
from unlearn_mlx.runs.records import Event, read_events, read_manifest
from unlearn_mlx.runs.run import RUNS, Run, open_run
from unlearn_mlx.topics import Topic, load_topic

KEY = "adapter"  # of the chosen one in the session and in the page's address


@dataclass(frozen=True)
class Choice:
    """An adapter to show. ``rows`` is the folder of the questions and answers it was made from."""

    key: str
    topic: Topic
    model_name: str
    adapter: Path
    rows: Path
    is_shipped: bool

    @property
    def name(self) -> str:
        """What it is called in a list."""
        return f"{self.topic.name} · {self.model_name}" + ("" if self.is_shipped else f" · {self.key}")

    def metrics(self) -> Metrics | None:
        """Its evaluation: one with every probe where that is there, else the metrics alone, or None.

        Raises:
            UserError: where the file is damaged.
        """
        paths = (
            self.rows / "evaluation.json",
            self.adapter / "evaluation.json",
            self.adapter / "metrics.json",
        )
        return next((read_metrics(path) for path in paths if path.exists()), None)

    def readable_metrics(self) -> Metrics | None:
        """Its evaluation; None where there is none or it is damaged, which the page of results says."""
        try:
            return self.metrics()
        except UserError:
            return None

    def scored_probes(self) -> list[ScoredProbe]:
        """The probes of its evaluation, where that has them."""
        metrics = self.readable_metrics()
        return metrics.probes if isinstance(metrics, Evaluation) else []

    def seed(self) -> int:
        """The seed that its run was made with."""
        manifest = self.rows / "manifest.json"
        made = read_manifest(manifest) if manifest.exists() else self.readable_metrics()
        seed = made.settings.get("seed") if made else None
        return seed if isinstance(seed, int) else 0

    def audit(self) -> Audit | None:
        """Its audit, where one was made."""
        return read_audit(self.rows) or read_audit(self.adapter)

    def events(self) -> list[Event]:
        """The progress of its run, as far as it was kept."""
        return read_events(self.rows / "events.jsonl") or read_events(self.adapter / "events.jsonl")

    def probes(self) -> list[Probe]:
        """The questions that it is judged on."""
        own = self.rows / "probes.jsonl"
        files = [*([own] if own.exists() else []), *probe_files(self.topic)]
        every = [probe for path in files for probe in read_probes(path)]
        asked = {probe.id for probe in self.scored_probes()}
        return [probe for probe in every if not asked or probe.id in asked]


def example_questions(choice: Choice, count: int = 3) -> dict[str, list[str]]:
    """Questions to click, by scope: such as the base can answer, where that was measured."""
    known = {probe.id for probe in choice.scored_probes() if probe.shows("base")}
    plain = [probe for probe in choice.probes() if probe.form == QUESTION_ANSWER]
    questions: dict[str, list[str]] = {}
    for scope in SCOPES:
        own = [probe for probe in plain if probe.scope == scope]
        own = [probe for probe in own if probe.id in known] or own
        # Spread over the file: what stands together in it is alike.
        questions[scope] = [
            own[len(own) * number // count].question for number in range(min(count, len(own)))
        ]
    return questions


def shipped_choices() -> Iterator[Choice]:
    """The adapters that come with the project."""
    for metrics in sorted(SHIPPED.glob("*/*/metrics.json")):
        folder = metrics.parent
        rows = DATA / "synthetic" / folder.parent.name / folder.name
        if _is_adapter(folder) and (rows / "topic.toml").exists():
            key = "/".join(folder.relative_to(SHIPPED.parent).parts)
            yield Choice(key, load_topic(rows / "topic.toml"), folder.parent.name, folder, rows, True)


def runs_here() -> tuple[list[Run], list[str]]:
    """The runs in this directory, and what is wrong with those that cannot be opened."""
    runs, complaints = [], []
    for manifest in sorted([*RUNS.glob("*/manifest.json"), *RUNS.glob("*/*/manifest.json")]):
        try:
            run = open_run(manifest.parent)
            load_topic(run.file("topic.toml"))
            runs.append(run)
        except UserError as error:
            complaints.append(str(error))
    return runs, complaints


def key_of(path: Path) -> str:
    """The key of a run's adapter: its directory, with the same slashes on every system."""
    return "/".join(path.parts)


def all_choices() -> dict[str, Choice]:
    """Every adapter there is to show, by key; Harry Potter's is the first."""
    shipped = sorted(shipped_choices(), key=lambda choice: (choice.topic.slug != "harry-potter", choice.key))
    choices = {choice.key: choice for choice in shipped}
    for run in runs_here()[0]:
        if _is_adapter(run.file("adapter")):
            key = key_of(run.path)
            choices[key] = Choice(key, run.topic, run.model_name, run.file("adapter"), run.path, False)
    return choices


def chosen() -> Choice:
    """The adapter that is chosen in the sidebar; a page without one ends here."""
    choices = all_choices()
    choice = choices.get(st.session_state.get(KEY) or next(iter(choices), ""))
    if choice is None:
        st.info("There is no adapter yet. Make one on the page “Make one”.")
        st.stop()
    return choice


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapters.safetensors").exists() and (folder / "adapter_config.json").exists()
