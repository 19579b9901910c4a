"""Chat with the model as it was and with what it forgot, side by side."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from demo.choices import chosen
from demo.model import (
    chat_engine,
    follow,
    known_leak_rate,
    measure_leak_rate,
    open_probes,
    show_loading,
    this_tab,
)
from demo.text import answer_html, label, text_html
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import SCOPES
from unlearn_mlx.inference.engine import Engine, Mode
from unlearn_mlx.session.catalog import Entry, example_questions
from unlearn_mlx.session.conversation import MODES, Conversation, Manner, Turn, leak_pieces
from unlearn_mlx.topics import Topic

COLUMNS = {"Both": MODES["both"], "Base": MODES["base"], "Unlearned": MODES["adapter"]}
NAMES: dict[Mode, str] = {"base": "Base", "adapter": "Unlearned"}


def show() -> None:
    """The page."""
    entry = chosen()
    topic = entry.topic
    talks: dict[str, Conversation] = st.session_state.setdefault("talks", {})
    conversation = talks.setdefault(entry.key, Conversation())
    turns = conversation.turns
    if typed := st.chat_input("Ask anything", max_chars=2000):
        st.session_state["question"] = typed
    is_asked = "question" in st.session_state or any(turn.state == "asked" for turn in turns)
    is_wanted = is_asked or entry.model_name == chat_engine().model_name
    engine = chat_engine().prepare(entry.model_name) if is_wanted else None
    with st.sidebar:
        manner = show_settings(engine, entry)
    st.subheader(f"{label(topic.name)}, forgotten by {label(entry.model_name)}")
    if not is_ready(engine):
        show_loading(entry.model_name)
    if question := st.session_state.pop("question", None):
        turns.append(Turn(question, manner, st.session_state.pop("takes", 0)))
    for turn in turns:
        # Streamlit starts a page anew beside its old run, which may not have ended yet.
        turn.stop()
    if not turns:
        show_examples(entry)
    for turn in turns[:-1]:
        show_turn(topic, turn)
    if turns:
        show_last(engine, entry, topic, conversation)


def show_settings(engine: Engine | None, entry: Entry) -> Manner:
    """The controls in the sidebar. Only the strength's act at once, the others with the next question."""
    columns = st.segmented_control(
        "Who answers",
        list(COLUMNS),
        default="Both",
        required=True,
        key="columns",
        persist_state="session",
        on_change="ignore",
    )
    show_strength(engine, entry)
    temperature = st.slider(
        "Temperature",
        0.0,
        1.5,
        0.0,
        0.1,
        key="temperature",
        persist_state="session",
        on_change="ignore",
        help="0 is greedy: the likeliest word each time. Above it both columns draw the same random numbers; "
        "noise can look like forgetting.",
    )
    length = st.slider(
        "Longest answer, tokens",
        16,
        512,
        128,
        16,
        key="length",
        persist_state="session",
        on_change="ignore",
    )
    seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="seed", persist_state="session", on_change="ignore")
    return Manner(COLUMNS[columns or "Both"], st.session_state["strength"], temperature, length, seed)


@st.fragment
def show_strength(engine: Engine | None, entry: Entry) -> None:
    """How much of the adapter is used, and how much of the topic leaks then."""
    strength = st.slider(
        "Adapter strength",
        0.0,
        2.0,
        1.0,
        0.25,
        key="strength",
        persist_state="session",
        help="0 is the base, 1 the adapter as it was trained.",
    )
    count = len(open_probes(entry))
    place = st.empty()
    rate = known_leak_rate(entry, strength)
    if rate is None and count:
        clicked = place.button(
            f"Measure the leak rate at {strength:g}",
            help=f"Asks {count} questions on the topic that training never saw.",
            disabled=not is_ready(engine),
        )
        if clicked and engine:
            stop = st.empty()
            # A click ends this run of the script, and the answers with it.
            stop.button("Stop measuring", icon=":material/stop_circle:")
            try:
                measure_leak_rate(engine, entry, strength, lambda done: place.progress(done, "Asking …"))
            except UserError as error:
                place.error(label(str(error)), icon=":material/error:")
            stop.empty()
            rate = known_leak_rate(entry, strength)
    if rate is not None:
        place.caption(
            f"At {strength:g}, **{rate:.0%}** of {count or 'the'} open questions on the topic leak "
            "(in the likeliest answer)."
        )


def is_ready(engine: Engine | None) -> bool:
    """Whether the model is loaded."""
    try:
        return engine is not None and engine.wait_until_ready(timeout=0)
    except UserError:  # which the line that tells of the loading says
        return False


def show_examples(entry: Entry) -> None:
    """Questions to click."""
    for scope, questions in example_questions(entry).items():
        if not questions:
            continue
        about = {"topic": f"On {entry.topic_name}", "general": "On anything else"}
        st.caption(label(about.get(scope, f"On {SCOPES[scope]}")))
        with st.container(horizontal=True):
            for number, question in enumerate(questions):
                st.button(
                    label(question),
                    key=f"example {scope} {number}",
                    on_click=lambda question=question: st.session_state.update(question=question),
                )


def show_last(engine: Engine | None, entry: Entry, topic: Topic, conversation: Conversation) -> None:
    """The last question: its answers as they come, if it was just asked, and what can be done about it."""
    turns = conversation.turns
    turn = turns[-1]
    places = open_turn(turn)
    status, controls = st.empty(), st.empty()
    if turn.state == "asked" and engine:
        turn.state = "answering"
        controls.button("Stop", icon=":material/stop_circle:", key="stop")

        def draw(waiting: str) -> None:
            draw_turn(topic, turn, places)
            if waiting:
                status.caption(f":material/hourglass_top: {waiting} …")
            else:
                status.empty()

        try:
            follow(conversation.ask(engine, turn, entry.adapter, this_tab()), turn.take, draw)
            turn.state = "answered" if turn.state == "answering" else turn.state
        except UserError as error:
            turn.state = str(error)
        finally:
            # A click or a closed tab has ended this run of the script.
            turn.stop()
    draw_turn(topic, turn, places)
    if turn.state == "stopped":
        status.caption(":material/stop_circle: Stopped.")
    elif turn.state != "answered":
        status.error(label(turn.state), icon=":material/error:")
    with controls.container(horizontal=True):
        st.button("Regenerate", icon=":material/refresh:", key="again", on_click=ask_again, args=(turns,))
        st.button("Clear", icon=":material/delete:", key="clear", on_click=turns.clear)


def ask_again(turns: list[Turn]) -> None:
    """Take the last question back and ask it anew, as the sidebar says now."""
    turn = turns.pop()
    st.session_state.update(question=turn.question, takes=turn.takes + 1)


def show_turn(topic: Topic, turn: Turn) -> None:
    """A question and its answers, as they were left."""
    draw_turn(topic, turn, open_turn(turn))


def open_turn(turn: Turn) -> dict[Mode, DeltaGenerator]:
    """Draw a question, and make a place for each answer."""
    with st.chat_message("user"):
        st.html(text_html(turn.question))
    columns = st.columns(len(turn.manner.modes), border=True)
    places = {}
    for mode, column in zip(turn.manner.modes, columns, strict=True):
        strength = f" · strength {turn.manner.strength:g}" if mode == "adapter" else ""
        column.markdown(f"**{NAMES[mode]}**{strength}")
        places[mode] = column.container()
    return {mode: place.empty() for mode, place in places.items()}


def draw_turn(topic: Topic, turn: Turn, places: dict[Mode, DeltaGenerator]) -> None:
    """Draw what each mode has said so far, leaks marked, and how soon it began."""
    for mode, place in places.items():
        reply = turn.replies[mode]
        is_open = turn.state == "answering" and not reply.finished
        text = reply.text.strip()
        with place.container():
            st.html(answer_html(topic, turn.question, text, is_open))
            if (waited := turn.waited(mode)) is not None:
                count = sum(is_leak for _, is_leak in leak_pieces(topic, turn.question, text))
                leaks = f"{count} name{'s' * (count != 1)} of the topic" if count else "no name of the topic"
                end = f" · cut at {turn.manner.max_tokens} tokens" if turn.is_cut(mode) else ""
                st.caption(f"{leaks} · first token after {waited:.2f} s{end}")


show()
