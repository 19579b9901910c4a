"""Make one: start a small run and watch it. It goes on when the page is reloaded or closed."""

from pathlib import Path

import streamlit as st

from demo.choices import KEY, all_choices
from demo.text import label, show_chart, text_html
from demo.workers import workers
from unlearn_mlx.config import PRESETS
from unlearn_mlx.errors import UserError
from unlearn_mlx.models.registry import NAMED_MODELS
from unlearn_mlx.reporting.charts import training_charts
from unlearn_mlx.runs.run import RUNS, STAGES, free_path
from unlearn_mlx.session.catalog import Entry, run_entries
from unlearn_mlx.session.create import new_run
from unlearn_mlx.session.endings import STOPPED
from unlearn_mlx.session.plan_text import plan_line
from unlearn_mlx.session.progress import STAGE_NAMES, Progress, StageProgress
from unlearn_mlx.topics import LONGEST_NAME

WATCHED = "run"
STARTED = "started run"  # that is to be watched as soon as it is there
WHATEVER_FITS = "the largest that this machine can hold"
SYMBOLS = {"done": ":material/check_circle:", "running": ":material/pending:", "failed": ":material/error:"}
STATES = {"waiting": "to come"}
SAMPLES_SHOWN = 3


def show() -> None:
    """The page."""
    st.subheader("Make a model forget something")
    show_form()
    workers().find()
    runs = {entry.key: entry for entry in run_entries() if not entry.error}
    if st.session_state.get(STARTED) in runs:
        st.session_state[WATCHED] = st.session_state.pop(STARTED)
    elif st.session_state.get(WATCHED) not in runs:
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


@st.fragment
def show_form() -> None:
    """What to forget, how much work to put into it, and what that takes of this machine."""
    with st.container(border=True):
        topic = st.text_input(
            "Topic", max_chars=LONGEST_NAME, placeholder="Sherlock Holmes", key="topic", help="Its name."
        )
        columns = st.columns(2)
        preset = columns[0].selectbox(
            "Work",
            list(PRESETS),
            help="quick takes minutes on a laptop and forgets less; standard is better.",
        )
        chosen = columns[1].selectbox("Model", [WHATEVER_FITS, *NAMED_MODELS])
        model = None if chosen == WHATEVER_FITS else chosen
        planned = st.empty()
        if st.button("Start", type="primary", icon=":material/play_arrow:"):
            start(topic, preset, model)
    st.caption(
        "The run is a program of its own: this page can be reloaded or closed, and the demo stopped. "
        f"It lies in `{RUNS}/`, and `unlearn runs` lists it."
    )
    # The first look at a machine takes a moment: the form is there before it.
    try:
        planned.caption(f":material/memory: {label(plan_of(model, preset))}")
    except UserError as error:
        planned.error(label(str(error)), icon=":material/error:")


@st.cache_data(ttl=60, show_spinner=False)
def plan_of(model: str | None, preset: str) -> str:
    """What a run takes, in a sentence.

    Raises:
        UserError: where this machine cannot tell.
    """
    import mlx.core as mx

    try:
        planned = new_run("any topic", model, preset, {})
        return plan_line(planned.model_name, planned.plan())
    finally:
        # A thread that ends with streams of its own makes mlx abort when the process ends.
        mx.clear_streams()


def start(topic: str, preset: str, model: str | None) -> None:
    """Start a run, or say why not."""
    if not topic.strip():
        st.warning("The topic is empty: say above what is to be forgotten.", icon=":material/edit:")
        return
    options = ["--preset", preset] + (["--model", model] if model else [])
    try:
        path = free_path(topic, workers().makings)
        workers().start_alone(path, topic, options)
    except UserError as error:
        st.error(label(str(error)), icon=":material/error:")
        return
    st.session_state[STARTED] = key_of(path)
    st.rerun()


def key_of(path: Path) -> str:
    """The key that a run will have among the entries."""
    return "/".join(path.parts)


def show_starting(path: Path) -> None:
    """A run that was started, before it has written anything."""
    if show_ending(path):
        return
    if (path / "manifest.json").exists():
        st.rerun()
    elif workers().is_working(path):
        st.caption(f":material/hourglass_top: {label(key_of(path))}: looking for the model …")


def show_ending(path: Path) -> bool:
    """Say how a run's last worker ended, where it was stopped or went wrong; whether it was."""
    ending = workers().ending(path)
    if ending and ending.is_bad:
        st.error(label(ending.text), icon=":material/error:")
    elif ending == STOPPED:
        st.caption(f":material/stop_circle: {label(ending.text)}")
    return ending is not None and (ending.is_bad or ending == STOPPED)


def show_run(entry: Entry) -> None:
    """How far a run is, as it goes on, and what can be done about it."""
    workers().new_endings()
    working, done = workers().is_working(entry.path), not entry.stages_undone()
    st.fragment(show_progress, run_every=1 if working else None)(entry.path, working)
    if not working:
        show_ending(entry.path)
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
    is_mended = progress.stages["mend"].state != "waiting"
    for stage in (*STAGES, *(["mend"] * is_mended)):
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
        said = "" if sample.answer is None else f" → {sample.answer}"
        is_told = sample.answer is not None or sample.reason
        verdict = f" ({f'rejected: {sample.reason}' if sample.reason else 'accepted'})" if is_told else ""
        st.html(text_html(f"{sample.question}{said}{verdict}"))


show()
