"""Make one: start a small run and watch it. It goes on when the page is reloaded or closed."""

from pathlib import Path

import streamlit as st

from demo.choices import KEY, all_choices
from demo.text import label, show_chart, text_html
from unlearn_mlx.config import PRESETS
from unlearn_mlx.errors import UserError
from unlearn_mlx.models.registry import NAMED_MODELS
from unlearn_mlx.reporting.charts import training_charts
from unlearn_mlx.runs.run import RUNS, STAGES
from unlearn_mlx.session.catalog import Entry, run_entries
from unlearn_mlx.session.create import free_path
from unlearn_mlx.session.processes import Workers
from unlearn_mlx.session.progress import STAGE_NAMES, Progress, StageProgress
from unlearn_mlx.topics import LONGEST_NAME

WATCHED = "run"
WHATEVER_FITS = "the largest that this machine can hold"
SYMBOLS = {"done": ":material/check_circle:", "running": ":material/pending:", "failed": ":material/error:"}
STATES = {"waiting": "to come"}
SAMPLES_SHOWN = 3


@st.cache_resource(show_spinner=False)
def workers() -> Workers:
    """The processes that work on runs, for all tabs."""
    return Workers()


def show() -> None:
    """The page."""
    st.subheader("Make a model forget something")
    show_form()
    workers().find()
    runs = {entry.key: entry for entry in run_entries() if not entry.error}
    if st.session_state.get(WATCHED) not in runs:
        working = [key for key, entry in runs.items() if workers().is_working(entry.path)]
        st.session_state[WATCHED] = next(iter([*working, *reversed(runs)]), None)
    starting = [path for path in workers().makings if key_of(path) not in runs]
    if starting:
        # Until the child has looked at the model there is no run to read.
        st.fragment(show_starting, run_every=1)(starting[-1])
    if runs:
        st.divider()
        key = st.selectbox("Watch", list(runs), key=WATCHED)
        show_run(runs[key])


def show_form() -> None:
    """What to forget, and how much work to put into it."""
    with st.form("start", border=True):
        topic = st.text_input(
            "Topic", max_chars=LONGEST_NAME, placeholder="Sherlock Holmes", key="topic", help="Its name."
        )
        columns = st.columns(2)
        preset = columns[0].selectbox(
            "Work",
            list(PRESETS),
            help="quick takes minutes on a laptop and forgets less; standard is better.",
        )
        model = columns[1].selectbox("Model", [WHATEVER_FITS, *NAMED_MODELS])
        if st.form_submit_button("Start", type="primary", icon=":material/play_arrow:"):
            options = ["--preset", preset] + ([] if model == WHATEVER_FITS else ["--model", model])
            try:
                path = free_path(topic, workers().makings)
                workers().start_alone(path, topic, options)
            except UserError as error:
                st.error(label(str(error)), icon=":material/error:")
            else:
                st.session_state[WATCHED] = key_of(path)
    st.caption(
        "The run is a program of its own: this page can be reloaded or closed, and the demo stopped. "
        f"It lies in `{RUNS}/`, and `unlearn runs` lists it."
    )


def key_of(path: Path) -> str:
    """The key that a run will have among the entries."""
    return "/".join(path.parts)


def show_starting(path: Path) -> None:
    """A run that was started, before it has written anything."""
    if complaint := complaint_on(path):
        st.error(label(complaint), icon=":material/error:")
    elif (path / "manifest.json").exists():
        st.rerun()
    elif workers().is_working(path):
        st.caption(f":material/hourglass_top: {label(key_of(path))}: looking for the model …")


def complaint_on(path: Path) -> str:
    """Why a run's last worker ended badly; empty where it did not."""
    ending = workers().ending(path)
    return ending.text if ending and ending.is_bad else ""


def show_run(entry: Entry) -> None:
    """How far a run is, as it goes on, and what can be done about it."""
    workers().new_endings()
    working, done = workers().is_working(entry.path), not entry.stages_undone()
    st.fragment(show_progress, run_every=1 if working else None)(entry.path, working)
    if complaint := complaint_on(entry.path):
        st.error(label(complaint), icon=":material/error:")
    with st.container(horizontal=True):
        if done and entry.key in all_choices():
            if st.button("Chat with it", icon=":material/forum:", on_click=choose, args=(entry,)):
                st.switch_page("demo/pages/chat.py")
            if st.button(
                "How well did it work", icon=":material/monitoring:", on_click=choose, args=(entry,)
            ):
                st.switch_page("demo/pages/results.py")
        elif working and workers().is_own(entry.path):
            if st.button("Stop", icon=":material/stop_circle:"):
                workers().stop(entry.path)
                st.toast("It stops at the next safe point.")
        elif working:
            st.caption("It was started by another program: stop it there.")
        elif st.button("Resume", icon=":material/play_arrow:"):
            try:
                workers().start_alone(entry.path)
                st.rerun()
            except UserError as error:
                st.error(label(str(error)), icon=":material/error:")


def choose(entry: Entry) -> None:
    """Have the run's adapter be the one that all pages show."""
    st.session_state[KEY] = entry.key


def show_progress(path: Path, working: bool) -> None:
    """The stages, what the last of them says, and the curves of training."""
    workers().find()
    if workers().is_working(path) != working:
        st.rerun()
    followed: dict[Path, Progress] = st.session_state.setdefault("progress", {})
    progress = followed.setdefault(path, Progress(path))
    progress.update()
    for stage in STAGES:
        of_stage = progress.stages[stage]
        state = STATES.get(of_stage.state, of_stage.state)
        state = "stopped" if state == "running" and not working else state
        st.markdown(
            f"{SYMBOLS.get(state, ':material/radio_button_unchecked:')} **{STAGE_NAMES[stage]}**: {state}"
        )
        show_stage(of_stage, state == "running")
    for title, chart in training_charts(progress.training_events):
        st.caption(title)
        show_chart(chart)


def show_stage(stage: StageProgress, is_running: bool) -> None:
    """How far each part of a stage is; of one that runs also the last samples or message."""
    parts = [f"{done} of {total} {unit}" for unit, (done, total) in stage.counts.items()]
    if not is_running:
        if parts:
            st.caption(label(", ".join(parts)))
        return
    for text, (done, total) in zip(parts, stage.counts.values(), strict=True):
        st.progress(min(1.0, done / max(1, total)), label(text))
    if stage.message and not parts:
        st.caption(label(stage.message))
    for sample in stage.samples[:SAMPLES_SHOWN]:
        verdict = f"rejected: {sample.reason}" if sample.reason else "accepted"
        said = "" if sample.answer is None else f" → {sample.answer} ({verdict})"
        st.html(text_html(f"{sample.question}{said}"))


show()
