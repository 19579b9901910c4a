"""How well did it work: metrics, heat-map with transcripts, training curves and audit of an adapter."""

import altair as alt
import streamlit as st

from demo.choices import chosen
from demo.text import figures_html, label, pieces_html, shade, show_chart, table_html
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.records import Audit, Evaluation, Metrics, ScoredProbe
from unlearn_mlx.evaluation.schema import (
    AUDIT_COLUMNS,
    AUDIT_NOTE,
    SCOPES,
    control_rows,
    control_title,
    verdict_sentences,
)
from unlearn_mlx.reporting.charts import THEMES, audit_chart, change_chart, character_chart, training_charts
from unlearn_mlx.reporting.report import main_figures, table_rows, verdict_words
from unlearn_mlx.reporting.transcripts import Cell, HeatMap, MarkedAnswer, Transcript, heat_map
from unlearn_mlx.runs.records import Event
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.text.printable import printable

CELL = "cell"  # the name of the heat-map's selection
CELL_WIDTH, CELL_HEIGHT = 62, 30  # pixels
HARMLESS_TO_BAD = {"light": ["#eceff3", "#e5776f"], "dark": ["#242932", "#a8433b"]}


def show() -> None:
    """The page."""
    entry = chosen()
    st.subheader(f"How well did {label(entry.model_name)} forget {label(entry.topic_name)}?")
    try:
        metrics = entry.evaluation()
        audit = entry.audit()
        events = entry.events()
    except UserError as error:
        st.error(label(str(error)), icon=":material/error:")
        return
    if not metrics:
        st.info(f"This adapter is not evaluated yet{_command_for(entry, 'evaluate')}.")
        return
    show_verdict(entry, metrics)
    st.html(figures_html(main_figures(metrics)))
    st.caption(
        "The knowledge is **suppressed, not proven erased**: it can come back by other questions, by more "
        "samples, by fine-tuning, or by taking the adapter away."
    )
    show_metrics(metrics)
    if isinstance(metrics, Evaluation):
        show_heat_map(entry, metrics.probes)
    else:
        st.info(
            "Only the metrics of this adapter are here, not the answers to each question"
            + f"{_command_for(entry, 'evaluate')}."
        )
    show_training(events)
    show_audit(audit, _command_for(entry, "audit"))


def _command_for(entry: Entry, stage: str) -> str:
    """What does a stage, behind a colon; what ships has no run to do it in."""
    return f": `{entry.run.stage_command(stage)}` does it" if entry.run else ""


def show_verdict(entry: Entry, metrics: Metrics) -> None:
    """What the evaluation calls the adapter, in sentences."""
    if isinstance(metrics, Evaluation):
        sentences = verdict_words(metrics, entry.topic_name)
    else:
        sentences = verdict_sentences(metrics)
    if sentences:
        with st.container(border=True):
            st.markdown(f"**{label(sentences[0])}**")
            st.markdown(" ".join(label(sentence) for sentence in sentences[1:]))


def show_metrics(metrics: Metrics) -> None:
    """The table of before and after, and its charts."""
    st.markdown("#### Before and after")
    st.caption("On questions that training never saw. In brackets: 95 % intervals, in percentage points.")
    rows, others = table_rows(metrics)
    for title, some in (("", rows), ("Every other metric", others)):
        # The intervals of base and adapter are in the chart.
        cells = [
            (
                row.name,
                row.base.split(" [")[0],
                row.adapter.split(" [")[0],
                row.change,
                row.found or row.wanted,
            )
            for row in some
        ]
        if cells:
            found = "found" if metrics.intervals else "wanted"
            with st.expander(title) if title else st.container():
                st.html(table_html(("", "base", "adapter", "change", found), cells))
    show_control(metrics)
    if chart := change_chart(metrics):
        show_chart(chart)
    if chart := character_chart(metrics):
        st.markdown("#### What the answers are")
        st.caption("Fiction on the topic is what was trained. Refusals and broken answers are no unlearning.")
        show_chart(chart)


def show_control(metrics: Metrics) -> None:
    """What a random adapter of the same norm does to the same questions, where that was measured."""
    if rows := control_rows(metrics):
        with st.expander(f"What noise does: a {control_title(metrics)}"):
            cells = [(name, *values) for name, values in rows]
            st.html(table_html(("", "base", "adapter", "random adapter of the same norm"), cells))


def show_heat_map(entry: Entry, probes: list[ScoredProbe]) -> None:
    """What shows in each form of question on each entity; a click shows what was said, until the next one."""
    scopes = [scope for scope in SCOPES if any(probe.scope == scope for probe in probes)]
    if not scopes:
        return
    st.markdown("#### Where it shows")
    scope = st.segmented_control(
        "Questions on",
        scopes,
        default=scopes[0],
        required=True,
        format_func=lambda scope: SCOPES[scope],
        key="scope",
        persist_state="session",
    )
    heat = heat_map(probes, scope if scope in scopes else scopes[0])
    bad = "still shows" if heat.scope == "topic" else "was lost"
    st.caption(
        f"Base → adapter: how many of the questions show the knowledge. The redder, the more {bad}. "
        "Click a cell to read what was said."
    )
    key = f"heat {heat.scope}"
    selection = st.session_state.get(key, {}).get("selection", {})
    # Streamlit forgets what was picked once the chart is not drawn: on another page, or of another scope.
    opened: dict[tuple[str, str], set[str]] = st.session_state.setdefault("opened cells", {})
    place = (entry.key, heat.scope)
    if picked := {row["anchor"] for row in selection.get(CELL, []) if "anchor" in row}:
        opened[place] = picked
    cells = [cell for cell in heat.cells if cell.anchor in opened.get(place, ())] or heat.cells[:1]
    with st.container(key="heat"):
        st.altair_chart(heat_chart(heat, cells), width="content", theme=None, key=key, on_select="rerun")
    with st.container(key="said"):
        for cell in cells:
            show_cell(cell)


def heat_chart(heat: HeatMap, opened: list[Cell]) -> alt.LayerChart:
    """The map as a chart: a row an entity, a column a form of question; frames around what is open."""
    values = [
        {
            "anchor": cell.anchor,
            "entity": printable(cell.entity) or "everything",
            "form": printable(cell.form),
            "worse": cell.worse,
            "share": f"{cell.base} → {cell.adapter}",
            "count": cell.count,
            "frame": 3 if cell in opened else 1,
        }
        for cell in heat.cells
    ]
    # The order is said: left to themselves, the layers would each sort anew.
    cells = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X(
            "form:N",
            title=None,
            sort=heat.forms,
            axis=alt.Axis(orient="top", labelAngle=-40, labelAlign="left", labelLimit=160),
        ),
        y=alt.Y(
            "entity:N",
            title=None,
            sort=[printable(entity) or "everything" for entity, _ in heat.rows],
            axis=alt.Axis(labelLimit=130),
        ),
        tooltip=[
            alt.Tooltip("entity:N"),
            alt.Tooltip("form:N"),
            alt.Tooltip("share:N", title="base → adapter"),
            alt.Tooltip("count:Q", title="of"),
        ],
    )
    pick = alt.selection_point(name=CELL, fields=["anchor"], on="click")
    scale = alt.Scale(domain=[0, 1], range=HARMLESS_TO_BAD[shade()], interpolate="rgb")
    theme = THEMES[shade()]
    boxes = cells.mark_rect(stroke="#88888855", cursor="pointer").encode(
        color=alt.Color("worse:Q", scale=scale, legend=None),
        strokeWidth=alt.StrokeWidth("frame:Q", scale=None),
    )
    texts = cells.mark_text(fontSize=12, color=theme["text"]["color"], cursor="pointer").encode(
        text="share:N"
    )
    chart: alt.LayerChart = (
        alt.layer(boxes.add_params(pick), texts)
        .properties(width=alt.Step(CELL_WIDTH), height=alt.Step(CELL_HEIGHT))
        .configure(**{key: theme[key] for key in ("background", "font", "view", "axis")})
    )
    return chart


def show_cell(cell: Cell) -> None:
    """What base and adapter said to the questions of a cell."""
    st.markdown(f"**{label(cell.entity)}**, {label(cell.form)}")
    for transcript in cell.transcripts:
        with st.expander(label(transcript.question), icon=mark_of(transcript)):
            st.caption(label(f"Expected: {transcript.expected}"))
            for name, answers, column in zip(
                ("Base", "Adapter"), (transcript.base, transcript.adapter), st.columns(2), strict=True
            ):
                with column:
                    st.markdown(f"**{name}**")
                    show_answers(answers)


def mark_of(transcript: Transcript) -> str:
    """A sign for whether the adapter shows the knowledge."""
    shows = any(answer.shows for answer in transcript.adapter)
    return ":material/visibility:" if shows else ":material/visibility_off:"


def show_answers(answers: list[MarkedAnswer]) -> None:
    """One model's answers, with what shows the knowledge marked."""
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            st.caption("greedy" if number == 0 else f"sample {number}")
        st.html(pieces_html(answer.pieces))


def show_training(events: list[Event]) -> None:
    """The curves of training, where its progress was kept."""
    charts = training_charts(events)
    if charts:
        st.markdown("#### Training")
        st.caption("Lines are training, points are validations on rows that are not trained on.")
    for title, chart in charts:
        st.caption(f"**{title}**")
        show_chart(chart)


def show_audit(audit: Audit | None, way: str) -> None:
    """What was tried on the adapter, and what came back."""
    st.markdown("#### Does it last?")
    if not audit:
        st.info(f"Not tried yet{way}. An audit rounds the adapter, trains it on, and says what comes back.")
        return
    st.text(printable(audit.text))
    st.caption(AUDIT_NOTE)
    if chart := audit_chart(audit.rows):
        show_chart(chart)
    rows = [
        (row.name, *("–" if (share := row.share(key)) is None else f"{share:.0%}" for key in AUDIT_COLUMNS))
        for row in audit.rows
    ]
    st.html(table_html(("tried", *AUDIT_COLUMNS.values()), rows))


show()
