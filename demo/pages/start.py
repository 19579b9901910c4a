"""Make one: start a small run and watch it. It goes on when the page is reloaded or closed."""

from pathlib import Path

import streamlit as st

from demo.choices import KEY, all_choices, key_of, runs_here
from demo.runs import children, free_path, is_done, is_working, options_of
from demo.text import label, show_chart, text_html
from unlearn_mlx.cli.rendering import STAGE_NAMES
from unlearn_mlx.config import PRESETS
from unlearn_mlx.errors import UserError
from unlearn_mlx.models.registry import NAMED_MODELS
from unlearn_mlx.reporting.charts import training_charts
from unlearn_mlx.runs.records import Event, MessageEvent, ProgressEvent
from unlearn_mlx.runs.run import RUNS, STAGES, Run, open_run
from unlearn_mlx.topics import LONGEST_NAME

WATCHED = "run"
WHATEVER_FITS = "the largest that this machine can hold"
SYMBOLS = {"done": ":material/check_circle:", "running": ":material/pending:", "failed": ":material/error:"}


def show() -> None:
    """The page."""
    st.subheader("Make a model forget something")
    show_form()
    runs = {key_of(run.path): run for run in runs_here()[0]}
    if st.session_state.get(WATCHED) not in runs:
        working = [key_of(path) for path in children().working()]
        st.session_state[WATCHED] = next((key for key in [*working, *reversed(runs)] if key in runs), None)
    starting = [path for path in children().by_path if key_of(path) not in runs]
    if starting:
        # Until the child has looked at the model there is no run to read.
        st.fragment(show_starting, run_every=1)(key_of(starting[-1]))
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
                path = free_path(topic)
                children().start(topic, path, options)
            except UserError as error:
                st.error(label(str(error)), icon=":material/error:")
            else:
                st.session_state[WATCHED] = key_of(path)
    st.caption(
        "The run is a program of its own: this page can be reloaded or closed, and the demo stopped. "
        f"It lies in `{RUNS}/`, and `unlearn runs` lists it."
    )


def show_starting(key: str) -> None:
    """A run that was started, before it has written anything."""
    child = next(child for path, child in children().by_path.items() if key_of(path) == key)
    if complaint := child.complaint():
        st.error(label(complaint), icon=":material/error:")
    elif Path(key, "manifest.json").exists():
        st.rerun()
    elif child.is_alive:
        st.caption(f":material/hourglass_top: {label(key)}: looking for the model …")


def show_run(run: Run) -> None:
    """How far a run is, as it goes on, and what can be done about it."""
    working, done = is_working(run), is_done(run)
    st.fragment(show_progress, run_every=1 if working else None)(run, working)
    if (child := children().by_path.get(run.path)) and (complaint := child.complaint()):
        st.error(label(complaint), icon=":material/error:")
    with st.container(horizontal=True):
        if done and key_of(run.path) in all_choices():
            if st.button("Chat with it", icon=":material/forum:", on_click=choose, args=(run,)):
                st.switch_page("demo/pages/chat.py")
            if st.button("How well did it work", icon=":material/monitoring:", on_click=choose, args=(run,)):
                st.switch_page("demo/pages/results.py")
        elif working and run.path in children().by_path:
            if st.button("Stop", icon=":material/stop_circle:"):
                children().stop(run.path)
                st.toast("It stops at the next safe point.")
        elif working:
            st.caption("It was started by another program: stop it there.")
        elif st.button("Resume", icon=":material/play_arrow:"):
            try:
                children().start(run.manifest.topic, run.path, options_of(run))
                st.rerun()
            except UserError as error:
                st.error(label(str(error)), icon=":material/error:")


def choose(run: Run) -> None:
    """Have the run's adapter be the one that all pages show."""
    st.session_state[KEY] = key_of(run.path)


def show_progress(run: Run, working: bool) -> None:
    """The stages, what the last of them says, and the curves of training."""
    run = open_run(run.path)
    if is_working(run) != working:
        st.rerun()
    events = run.events()
    for stage in STAGES:
        state = run.state_of(stage) or "to come"
        state = "stopped" if state == "running" and not working else state
        st.markdown(
            f"{SYMBOLS.get(state, ':material/radio_button_unchecked:')} **{STAGE_NAMES[stage]}**: {state}"
        )
        own = [event for event in events if event.stage == stage]
        show_stage(own, state == "running")
    for title, chart in training_charts(events):
        st.caption(title)
        show_chart(chart)


def show_stage(events: list[Event], is_running: bool) -> None:
    """How far each part of a stage is; of one that runs also the last samples or message."""
    progress = {event.unit: event for event in events if isinstance(event, ProgressEvent)}
    if not is_running:
        if progress:
            parts = [f"{event.done} of {event.total} {unit}" for unit, event in progress.items()]
            st.caption(label(", ".join(parts)))
        return
    for unit, event in progress.items():
        share = event.done / max(1, event.total)
        st.progress(min(1.0, share), label(f"{event.done} of {event.total} {unit}"))
    messages = [event.text for event in events if isinstance(event, MessageEvent)]
    if messages and not progress:
        st.caption(label(messages[-1]))
    newest = max(progress.values(), key=lambda event: event.time, default=None)
    for sample in newest.samples[:3] if newest else []:
        if isinstance(sample, str):
            st.html(text_html(sample))
        else:
            verdict = f"rejected: {sample.reason}" if sample.reason else "accepted"
            st.html(text_html(f"{sample.question} → {sample.answer} ({verdict})"))


show()
