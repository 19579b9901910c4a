"""The one model of this process, and the way from a page to its answers and back."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from demo.text import label
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.keys import answers_in_words
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.evaluation.schema import AUDIT_ANSWERS
from unlearn_mlx.inference.asking import Answering, Piece, context_of
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.chat_engine import ChatEngine

PAUSE = 0.05  # seconds between two drawings: what comes meanwhile is drawn together
LOOK = 0.2  # seconds between two looks whether the page still wants its answer
PROBES_AT_ONCE = 12  # of those that a leak rate is measured on


def follow(answering: Answering, take: Callable[[Piece], None], draw: Callable[[str], object]) -> None:
    """Hand on pieces as they come, until the last; ``draw`` gets what there is to wait for, if anything.

    Streamlit ends a script that is no longer wanted (a click, a closed tab) inside its own calls.
    ``draw`` makes some a few times a second, so the answer is cancelled soon after.
    """
    try:
        while not answering.ended:
            waiting = "" if answering.started.is_set() else "Waiting for the model"
            for piece in answering.read(LOOK):
                take(piece)
            draw(waiting)
            time.sleep(PAUSE)
    finally:
        answering.cancel()


def this_tab() -> str:
    """The name of this browser tab's session; tabs take turns at the model."""
    context = get_script_run_ctx()
    return context.session_id if context else ""


@st.cache_resource(show_spinner=False)
def chat_engine() -> ChatEngine:
    """The engine of this process, for all tabs: one model at a time."""
    return ChatEngine()


@st.fragment(run_every=0.5)
def show_loading(model_name: str) -> None:
    """Say that the model is being loaded until it is there; then draw the page anew.

    Loading begins with the second call, once the browser has the page: until then it would slow that.
    Another model is left in its place until a question is asked: tabs would take it from each other.
    """
    held = chat_engine()
    if held.model_name not in ("", model_name):
        st.session_state.pop("loading since", None)
        other = label(held.model_name)
        st.caption(f":material/memory: {other} is in memory; {label(model_name)} is loaded when you ask.")
        return
    is_drawn = "loading since" in st.session_state
    since = st.session_state.setdefault("loading since", time.monotonic())
    try:
        if is_drawn and held.prepare(model_name).wait_until_ready(timeout=0):
            del st.session_state["loading since"]
            st.rerun()
    except UserError as error:
        st.error(label(str(error)), icon=":material/error:")
        if st.button("Load again"):
            held.close()
        return
    seconds = int(time.monotonic() - since)
    st.progress(1 - 0.8 ** (1 + seconds), f"Loading {label(model_name)}: {seconds} s. You can ask meanwhile.")


@dataclass(frozen=True)
class LeakRate:
    """The share of the topic's open questions that leak, in so many answers to each."""

    share: float
    questions: int
    answers: int = 1

    @property
    def counted(self) -> str:
        """In which answers it was counted, in words: only equal ones compare."""
        return "the likeliest answer" if self.answers == 1 else answers_in_words(self.answers)


@st.cache_resource(show_spinner=False)
def leak_rates() -> dict[tuple[str, int, float], LeakRate]:
    """What was measured here, by adapter and strength."""
    return {}


def known_leak_rate(entry: Entry, strength: float) -> LeakRate | None:
    """The leak rate at a strength, where it is known: from here, from the audit, or from the evaluation.

    Raises:
        UserError: where the audit is damaged.
    """
    if measured := leak_rates().get(_rate_key(entry, strength)):
        return measured
    audit = entry.audit()
    if audit and (row := audit.at_strength(strength)):
        return LeakRate(row.leak, row.questions or len(open_probes(entry)), AUDIT_ANSWERS)
    metrics = entry.readable_evaluation()
    whose = {0.0: "base", 1.0: "adapter"}.get(strength)
    share = metrics.of(whose).get("topic/greedy leak") if metrics and whose else None
    return None if share is None else LeakRate(share, len(open_probes(entry)))


def measure_leak_rate(engine: Engine, entry: Entry, strength: float, draw: Callable[[float], object]) -> None:
    """Answer the topic's open questions greedily at a strength; ``draw`` gets the share that is done."""
    from unlearn_mlx.evaluation.scoring import ANSWER_TOKENS
    from unlearn_mlx.leakage.names import says_pattern

    probes = open_probes(entry)
    texts = {probe.id: "" for probe in probes}
    tokens = 0

    def take(piece: Piece) -> None:
        nonlocal tokens
        tokens += 1
        texts[piece.mode] += piece.text

    # Some at a time: other tabs have their turns between.
    for start in range(0, len(probes), PROBES_AT_ONCE):
        answering = engine.answer(
            {probe.id: context_of([], probe.question) for probe in probes[start : start + PROBES_AT_ONCE]},
            max_tokens=ANSWER_TOKENS,
            strength=strength,
            adapter=entry.adapter,
            asker=this_tab(),
            goes_on=False,
        )
        follow(answering, take, lambda _: draw(min(1.0, tokens / (len(probes) * ANSWER_TOKENS))))
    leaking = sum(says_pattern(probe.leak, texts[probe.id]) for probe in probes)
    leak_rates()[_rate_key(entry, strength)] = LeakRate(leaking / len(probes), len(probes))


def open_probes(entry: Entry) -> list[Probe]:
    """The questions about the topic that are answered freely."""
    return [probe for probe in entry.probes() if probe.scope == "topic" and probe.form == QUESTION_ANSWER]


def _rate_key(entry: Entry, strength: float) -> tuple[str, int, float]:
    # An adapter that was trained again in its place is another one.
    return entry.key, ((entry.adapter or entry.path) / "adapters.safetensors").stat().st_mtime_ns, strength
