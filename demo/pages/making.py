"""How it was made: five questions walked through guardrail, answers, filter and training rows."""

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from demo.choices import chosen
from demo.text import answer_html, label, text_html
from unlearn_mlx.errors import UserError
from unlearn_mlx.leakage.names import named
from unlearn_mlx.runs.records import BaseAnswer, Question, SampledAnswer, TrainingRow, read_records
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.conversation import leak_in
from unlearn_mlx.topics import Topic

SHOWN = 5


def show() -> None:
    """The page."""
    entry = chosen()
    topic = entry.topic
    st.subheader(f"How {label(entry.model_name)} was made to forget {label(topic.name)}")
    try:
        questions = read_records(entry.rows / "questions.jsonl", Question)
        answers = read_records(entry.rows / "answers.jsonl", SampledAnswer)
        base = read_records(entry.rows / "base_answers.jsonl", BaseAnswer)
        train = [
            row
            for name in ("train", "valid")
            for row in read_records(entry.rows / "dataset" / f"{name}.jsonl", TrainingRow)
        ]
    except UserError as error:
        st.error(label(str(error)), icon=":material/error:")
        return
    show_counts(questions, answers, train)
    base_answers = {row.question_id: row.answer for row in base}
    for question in questions_to_walk(topic, questions, answers, base_answers):
        st.divider()
        own = [row for row in answers if row.question_id == question.id]
        rows = [row for row in train if row.question_id == question.id]
        walk(entry, topic, question, base_answers.get(question.id, ""), own, rows)


def show_counts(
    questions: Sequence[Question], answers: Sequence[SampledAnswer], train: Sequence[TrainingRow]
) -> None:
    """How much there was at each step, and why answers were rejected."""
    accepted = sum(row.accepted for row in answers)
    parts = Counter(row.part for row in train)
    counts = {
        "questions the model wrote": len(questions),
        "guarded answers drawn": len(answers),
        "of them accepted": accepted,
        "rows that teach fiction": parts["forget"],
        "rows that keep the rest": sum(parts.values()) - parts["forget"],
    }
    with st.container(horizontal=True):
        for name, count in counts.items():
            st.metric(name, count, width="content")
    reasons = Counter(row.reason for row in answers if not row.accepted)
    st.caption(
        label(
            "Rejected because: " + ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        )
    )


def questions_to_walk(
    topic: Topic,
    questions: Sequence[Question],
    answers: Sequence[SampledAnswer],
    base_answers: dict[str, str],
) -> list[Question]:
    """Five questions with an accepted answer, of as many kinds: those that the base tells most of first."""
    accepted = {row.question_id for row in answers if row.accepted}
    rejected = {row.question_id for row in answers if not row.accepted}

    def telling(question: Question) -> tuple[bool, bool]:
        told = named(topic, question.question, base_answers.get(question.id, ""))
        return not told, question.id not in rejected

    seen: Counter[str] = Counter()
    order: list[tuple[int, tuple[bool, bool], int, Question]] = []
    for question in sorted((row for row in questions if row.id in accepted), key=telling):
        order.append((seen[question.kind], telling(question), len(order), question))
        seen[question.kind] += 1
    return [question for *_, question in sorted(order, key=lambda place: place[:3])[:SHOWN]]


def walk(
    entry: Entry,
    topic: Topic,
    question: Question,
    base: str,
    answers: Sequence[SampledAnswer],
    rows: Sequence[TrainingRow],
) -> None:
    """One question through all steps."""
    from unlearn_mlx.synthetic_data.guardrail import DEFAULT, GUARDRAILS
    from unlearn_mlx.synthetic_data.hints import hint_for

    st.markdown(f"#### {label(question.question)}")
    st.caption("1 · What the base says to it; names of the topic are marked")
    st.html(answer_html(base, leak_in(topic, question.question, base)))
    guardrail = GUARDRAILS.get(next((answer.guardrail for answer in answers), ""), DEFAULT)
    hint = hint_for(question, topic, f"guarded-{question.id}-0-0", entry.seed())
    with st.expander("2 · The guardrail: what stands before the question, so that the base knows nothing"):
        st.caption("The examples and the hint change from answer to answer; this is one of them.")
        for message in guardrail.messages(question.question, topic.name, 0, hint):
            st.caption(message["role"])
            st.html(text_html(message["content"]))
    st.caption("3 · The answers behind the guardrail, and what the filter said")
    for answer in answers:
        columns = st.columns([1, 3])
        if answer.accepted:
            columns[0].badge("accepted", icon=":material/check:", color="green")
        else:
            columns[0].badge(label(answer.reason), icon=":material/close:", color="red")
        columns[1].html(answer_html(answer.answer, leak_in(topic, question.question, answer.answer)))
    st.caption("4 · What the adapter was trained on")
    for row in rows:
        said = " → ".join(message.content for message in row.messages)
        st.html(text_html(said))


show()
