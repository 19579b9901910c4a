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
from demo.workers import workers
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import SCOPES
from unlearn_mlx.inference.asking import Mode
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.session.catalog import Entry, example_questions
from unlearn_mlx.session.conversation import MEMORY, MODES, Conversation, Manner, Turn, leak_in
from unlearn_mlx.session.marking import marks_to_mend, toggle_mark
from unlearn_mlx.session.mending import last_mend, stages_of_mend
from unlearn_mlx.session.shipped import run_to_mend

COLUMNS = {"Both": MODES["both"], "Base": MODES["base"], "Unlearned": MODES["adapter"]}
NAMES: dict[Mode, str] = {"base": "Base", "adapter": "Unlearned"}
LONGEST = 2000  # characters of a question
SAME = "At temperature 0 the likeliest answer is the same each time: raise the temperature for another one."


def show() -> None:
    """The page."""
    entry = chosen()
    topic = entry.topic
    talks: dict[str, Conversation] = st.session_state.setdefault("talks", {})
    conversation = talks.setdefault(entry.key, Conversation(topic=topic))
    turns = conversation.turns
    st.chat_input("Ask anything", key="typed", on_submit=take_typed)
    state = st.session_state
    is_asked = "question" in state or "again" in state or any(turn.state == "asked" for turn in turns)
    is_wanted = is_asked or entry.model_name == chat_engine().model_name
    engine = chat_engine().prepare(entry.model_name) if is_wanted else None
    with st.sidebar:
        manner = show_settings(engine, entry)
    st.subheader(f"{label(topic.name)}, forgotten by {label(entry.model_name)}")
    # Places that are there in every run of the page: what the last one drew in them goes away at once.
    loading, examples, conversed, mending = st.empty(), st.empty(), st.container(), st.empty()
    if not is_ready(engine):
        with loading.container():
            show_loading(entry.model_name)
    is_same = False
    if question := state.pop("question", None):
        turns.append(Turn(question, manner))
    elif state.pop("again", False) and turns:
        is_same = would_be_same(turns[-1], manner)
        if not is_same:
            last = turns.pop()
            turns.append(Turn(last.question, manner, last.takes + 1))
    for turn in turns:
        # Streamlit starts a page anew beside its old run, which may not have ended yet.
        turn.stop()
    if not turns:
        with examples.container(key="examples"):
            show_examples(entry)
    with conversed:
        for turn in turns[:-1]:
            show_turn(conversation, turn)
        if turns:
            show_last(engine, entry, conversation, SAME if is_same else "")
    with mending.container():
        show_mending(entry)
    if too_long := state.pop("too long", 0):
        st.warning(
            f"A question has at most {LONGEST:,} characters, this one has {too_long:,}: shorten it below.",
            icon=":material/content_cut:",
        )


def take_typed() -> None:
    """Take what was typed as a question; what is too long for one goes back into the field."""
    state = st.session_state
    typed = state["typed"]
    if len(typed) > LONGEST:
        state.update({"typed": typed, "too long": len(typed)})
    else:
        state["question"] = typed


def would_be_same(turn: Turn, manner: Manner) -> bool:
    """Whether a turn that is asked again in a manner gets the answer that it has."""
    return turn.state == "answered" and turn.manner == manner and not manner.temperature


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
        help=MEMORY,
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
    try:
        rate = known_leak_rate(entry, strength)
    except UserError as error:
        place.caption(label(str(error)))
        return
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
            f"At {strength:g}, **{rate.share:.0%}** of {rate.questions or 'the'} open questions on the topic "
            f"leak (in {rate.counted})."
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


def show_last(engine: Engine | None, entry: Entry, conversation: Conversation, note: str) -> None:
    """The last question: its answers as they come, if it was just asked, and what can be done about it."""
    turns = conversation.turns
    turn = turns[-1]
    places = open_turn(turn)
    status, controls = st.empty(), st.empty()
    if turn.state == "asked" and engine:
        turn.state = "answering"
        controls.button("Stop", icon=":material/stop_circle:", key="stop")

        def draw(waiting: str) -> None:
            draw_turn(conversation, turn, places)
            if waiting := waiting or turn.reading().capitalize():
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
    draw_turn(conversation, turn, places)
    if turn.state == "stopped":
        status.caption(":material/stop_circle: Stopped.")
    elif turn.state != "answered":
        status.error(label(turn.state), icon=":material/error:")
    elif note:
        status.caption(f":material/info: {note}")
    with controls.container(horizontal=True):
        st.button(
            "Regenerate",
            icon=":material/refresh:",
            key="regenerate",
            on_click=lambda: st.session_state.update(again=True),
            help="Asks the last question again, as the sidebar says now.",
        )
        st.button("Clear", icon=":material/delete:", key="clear", on_click=turns.clear)
        reply = turn.replies.get("adapter")
        if reply is not None and reply.text.strip() and turn.state == "answered":
            st.button(
                "Take the mark back" if reply.is_marked else "Mark as a leak",
                icon=":material/flag:",
                key="mark",
                on_click=mark,
                args=(entry, conversation, turn),
                help="What you mark is kept in the run, and can be trained away.",
            )


def mark(entry: Entry, conversation: Conversation, turn: Turn) -> None:
    """Mark the adapter's answer as a leak, or take the mark back."""
    try:
        told = toggle_mark(entry, conversation, turn, "adapter", "The button below mends it.")
        st.toast(label(told), icon=":material/flag:")
    except UserError as error:
        st.toast(label(str(error)), icon=":material/error:")


def show_mending(entry: Entry) -> None:
    """Offer to train away what was marked, and say what the last mend has changed."""
    if entry.run is not None and (told := last_mend(entry.run)):
        st.caption(f":material/healing: {label(told)}")
    count = marks_to_mend(entry)
    if not count:
        return
    answers = f"{count} marked answer{'s' * (count != 1)}"
    if st.button(f"Mend {answers}", icon=":material/healing:", key="mend"):
        try:
            run = run_to_mend(entry)
            workers().start_alone(run.path, stages=stages_of_mend(run))
        except UserError as error:
            st.error(label(str(error)), icon=":material/error:")
            return
        st.info(f"{label(str(run.path))} is mended now: the page “Make one” shows how far it is.")


def show_turn(conversation: Conversation, turn: Turn) -> None:
    """A question and its answers, as they were left."""
    draw_turn(conversation, turn, open_turn(turn))


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


def draw_turn(conversation: Conversation, turn: Turn, places: dict[Mode, DeltaGenerator]) -> None:
    """Draw what each mode has said so far, leaks marked, and how soon it began."""
    topic, asked = conversation.topic, conversation.asked(turn)
    for mode, place in places.items():
        reply = turn.replies[mode]
        is_open = turn.state == "answering" and not reply.finished
        text = reply.text.strip()
        leak = leak_in(topic, asked, text)
        with place.container():
            st.html(answer_html(text, leak, is_open))
            if timing := turn.timing(mode):
                leaks = f":material/warning: leaks: {label(leak.reason)}" if leak else "no name of the topic"
                if reply.is_marked:
                    leaks = f":material/flag: marked as a leak · {leaks}"
                end = f" · cut at {turn.manner.max_tokens} tokens" if turn.is_cut(mode) else ""
                st.caption(f"{leaks} · {timing}{end}")


show()
