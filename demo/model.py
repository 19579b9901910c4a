"""The one model of this process, and the way from a page to its answers and back."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from demo.choices import Choice
from demo.text import label
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.inference.engine import Answering, Engine, Mode, Piece, context_of

PAUSE = 0.05  # seconds between two drawings: what comes meanwhile is drawn together
LOOK = 0.2  # seconds between two looks whether the page still wants its answer
TURNS_KEPT = 6  # of a conversation that are fed back: a small model loses itself in longer ones
PROBES_AT_ONCE = 12  # of those that a leak rate is measured on
TURNS_LEFT_OUT = 3  # at once, of a longer one: what was computed of the others serves until it starts anew


@dataclass(frozen=True)
class Manner:
    """How a question is answered; both modes share all of it."""

    modes: tuple[Mode, ...]
    strength: float = 1.0
    temperature: float = 0.0
    max_tokens: int = 128
    seed: int = 0


@dataclass
class Turn:
    """A question, and what was answered so far by each mode."""

    question: str
    manner: Manner
    takes: int = 0  # how often it was answered before; each take draws other random numbers
    texts: dict[Mode, str] = field(default_factory=dict)
    first_tokens: dict[Mode, float] = field(default_factory=dict)  # seconds to the first one
    finished: set[Mode] = field(default_factory=set)  # whose answers ended by themselves
    state: str = "asked"  # then "answering", and "answered", "stopped" or what went wrong
    answering: Answering | None = None

    def add(self, piece: Piece, seconds: float) -> None:
        """Put some text to an answer that is ``seconds`` old."""
        self.texts[piece.mode] = self.texts.get(piece.mode, "") + piece.text
        self.first_tokens.setdefault(piece.mode, seconds)
        if piece.finished:
            self.finished.add(piece.mode)

    def stop(self) -> None:
        """End an answer that is under way."""
        if self.state == "answering":
            self.state = "stopped"
        if self.answering:
            self.answering.cancel()


def ask(engine: Engine, choice: Choice, turns: list[Turn]) -> Answering:
    """Ask the last turn's question; each mode is told what it said before, not what the other said."""
    turn = turns[-1]
    conversations = {}
    for mode in turn.manner.modes:
        said: list[dict[str, str]] = []
        for earlier in turns_fed_back(turns):
            if answer := earlier.texts.get(mode, "").strip():
                said += context_of([], earlier.question)
                said.append({"role": "assistant", "content": answer})
        conversations[mode] = context_of(said, turn.question)
    return engine.answer(
        conversations,
        temperature=turn.manner.temperature,
        max_tokens=turn.manner.max_tokens,
        seed=turn.manner.seed + turn.takes,
        strength=turn.manner.strength,
        adapter=choice.adapter,
        asker=this_tab(),
    )


def turns_fed_back(turns: list[Turn]) -> list[Turn]:
    """The turns that the last one is told of."""
    too_many = max(0, len(turns) - 1 - TURNS_KEPT)
    return turns[-(-too_many // TURNS_LEFT_OUT) * TURNS_LEFT_OUT : -1]


def follow(answering: Answering, take: Callable[[Piece, float], None], draw: Callable[[str], object]) -> None:
    """Hand on pieces as they come, until the last; ``draw`` gets what there is to wait for, if anything.

    Streamlit ends a script that is no longer wanted (a click, a closed tab) inside its own calls.
    ``draw`` makes some a few times a second, so the answer is cancelled soon after.
    """
    asked = time.monotonic()
    try:
        while not answering.ended:
            waiting = "" if answering.started.is_set() else "Waiting for the model"
            for piece in answering.read(LOOK):
                take(piece, time.monotonic() - asked)
            draw(waiting)
            time.sleep(PAUSE)
    finally:
        answering.cancel()


def this_tab() -> str:
    """The name of this browser tab's session; tabs take turns at the model."""
    context = get_script_run_ctx()
    return context.session_id if context else ""


@st.cache_resource(max_entries=1, on_release=Engine.close, show_spinner=False)
def engine_of(model_name: str) -> Engine:
    """The engine with this model; it takes the place of another model's."""
    _models()[:] = [model_name]
    return Engine(model_name, None)


@st.cache_resource(show_spinner=False)
def _models() -> list[str]:
    return []


def model_in_memory() -> str:
    """The model that is loaded, or about to be; empty before there is one."""
    return next(iter(_models()), "")


@st.fragment(run_every=0.5)
def show_loading(model_name: str) -> None:
    """Say that the model is being loaded until it is there; then draw the page anew.

    Loading begins with the second call, once the browser has the page: until then it would slow that.
    Another model is left in its place until a question is asked: tabs would take it from each other.
    """
    if model_in_memory() not in ("", model_name):
        st.session_state.pop("loading since", None)
        other = label(model_in_memory())
        st.caption(f":material/memory: {other} is in memory; {label(model_name)} is loaded when you ask.")
        return
    is_drawn = "loading since" in st.session_state
    since = st.session_state.setdefault("loading since", time.monotonic())
    try:
        if is_drawn and engine_of(model_name).wait_until_ready(timeout=0):
            del st.session_state["loading since"]
            st.rerun()
    except UserError as error:
        st.error(label(str(error)), icon=":material/error:")
        if st.button("Load again"):
            engine_of.clear()
        return
    seconds = int(time.monotonic() - since)
    st.progress(1 - 0.8 ** (1 + seconds), f"Loading {label(model_name)}: {seconds} s. You can ask meanwhile.")


@st.cache_resource(show_spinner=False)
def leak_rates() -> dict[tuple[str, int, float], float]:
    """Measured shares of open questions that leak in the greedy answer, by adapter and strength."""
    return {}


def known_leak_rate(choice: Choice, strength: float) -> float | None:
    """The leak rate at a strength, where it is known: 0 is the base, 1 the adapter as it was evaluated."""
    if (measured := leak_rates().get(_rate_key(choice, strength))) is not None:
        return measured
    metrics = choice.readable_metrics()
    whose = {0.0: "base", 1.0: "adapter"}.get(strength)
    return metrics.of(whose).get("topic/greedy leak") if metrics and whose else None


def measure_leak_rate(
    engine: Engine, choice: Choice, strength: float, draw: Callable[[float], object]
) -> None:
    """Answer the topic's open questions greedily at a strength; ``draw`` gets the share that is done."""
    from unlearn_mlx.evaluation.scoring import ANSWER_TOKENS, shows_knowledge

    probes = open_probes(choice)
    texts = {probe.id: "" for probe in probes}
    tokens = 0

    def take(piece: Piece, _: float) -> None:
        nonlocal tokens
        tokens += 1
        texts[piece.mode] += piece.text

    # Some at a time: other tabs have their turns between.
    for start in range(0, len(probes), PROBES_AT_ONCE):
        answering = engine.answer(
            {probe.id: context_of([], probe.question) for probe in probes[start : start + PROBES_AT_ONCE]},
            max_tokens=ANSWER_TOKENS,
            strength=strength,
            adapter=choice.adapter,
            asker=this_tab(),
            goes_on=False,
        )
        follow(answering, take, lambda _: draw(min(1.0, tokens / (len(probes) * ANSWER_TOKENS))))
    leaking = sum(shows_knowledge(probe, texts[probe.id]) for probe in probes)
    leak_rates()[_rate_key(choice, strength)] = leaking / len(probes)


def open_probes(choice: Choice) -> list[Probe]:
    """The questions about the topic that are answered freely."""
    return [probe for probe in choice.probes() if probe.scope == "topic" and probe.form == QUESTION_ANSWER]


def _rate_key(choice: Choice, strength: float) -> tuple[str, int, float]:
    # An adapter that was trained again in its place is another one.
    return choice.key, (choice.adapter / "adapters.safetensors").stat().st_mtime_ns, strength
