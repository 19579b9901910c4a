"""How well did it work: figures, heat-map with transcripts, training curves and audit of an adapter."""

from typing import Any

import altair as alt
import streamlit as st

from demo.choices import Choice, chosen
from demo.text import label, pieces_html, show_chart
from unlearn_mlx.evaluation.charts import audit_chart, change_chart, training_charts
from unlearn_mlx.evaluation.results import FIGURES, SCOPES, change_written, written
from unlearn_mlx.evaluation.transcripts import Answer, Cell, HeatMap, Transcript, heat_map, printable

CELL = "cell"  # the name of the heat-map's selection


def show() -> None:
    """The page."""
    choice = chosen()
    st.subheader(f"{label(choice.topic.name)}, forgotten by {label(choice.model_name)}")
    figures = choice.figures()
    if not figures:
        st.info("This adapter is not evaluated yet: run `unlearn evaluate` on its run.")
        return
    show_figures(figures)
    if "probes" in figures:
        show_heat_map(choice, figures["probes"])
    else:
        st.info("Only the figures were kept of this adapter's evaluation, not the answers to each question.")
    show_training(choice)
    show_audit(choice)


def show_figures(figures: dict[str, Any]) -> None:
    """The table of before and after."""
    st.markdown("#### Before and after")
    st.caption("On questions that training never saw.")
    rows = [
        {
            "measure": name,
            "base": written(key, figures["base"][key]),
            "adapter": written(key, figures["adapter"][key]),
            "change": change_written(figures, key),
            "wanted": "low" if less else "kept",
        }
        for key, name, less in FIGURES
        if key in figures["base"] and key in figures["adapter"]
    ]
    st.dataframe(rows, hide_index=True, height="content", key="figures")
    if chart := change_chart(figures):
        show_chart(chart)


def show_heat_map(choice: Choice, probes: list[dict[str, Any]]) -> None:
    """What shows in each form of question on each entity; a click shows what was said."""
    st.markdown("#### Where it shows")
    scopes = [scope for scope in SCOPES if any(probe["scope"] == scope for probe in probes)]
    scope = st.segmented_control(
        "Questions on",
        scopes,
        default=scopes[0],
        required=True,
        format_func=lambda scope: SCOPES[scope],
        key="scope",
        persist_state="session",
    )
    heat = heat_map(probes, scope or scopes[0])
    bad = "still shows it" if heat.scope == "topic" else "lost it"
    st.caption(f"The darker, the more of the adapter {bad}. Click a cell to read what was said.")
    selected = st.altair_chart(heat_chart(heat), key=f"heat {heat.scope}", on_select="rerun")
    picked = {row["anchor"] for row in selected.get("selection", {}).get(CELL, []) if "anchor" in row}
    cells = [cell for cell in heat.cells if cell.anchor in picked] or heat.cells[:1]
    for cell in cells:
        show_cell(cell)


def heat_chart(heat: HeatMap) -> alt.LayerChart | alt.FacetChart:
    """The map as a chart: a row an entity, a column a form; each cell "base → adapter" of how many."""
    values = [
        {
            "anchor": cell.anchor,
            "entity": printable(cell.entity),
            "form": printable(cell.form),
            "worse": cell.worse,
            "share": f"{cell.base} → {cell.adapter} of {cell.count}",
        }
        for cell in heat.cells
    ]
    cells = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("form:N", title=None, sort=None, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("entity:N", title=None, sort=None, axis=alt.Axis(labelLimit=160)),
    )
    pick = alt.selection_point(name=CELL, fields=["anchor"], on="click")
    colour = alt.Color(
        "worse:Q", scale=alt.Scale(domain=[0, 1], range=["#9bd3a866", "#ff4b4bcc"]), legend=None
    )
    boxes = cells.mark_rect(stroke="#88888855", cursor="pointer").encode(
        color=colour,
        strokeWidth=alt.condition(pick, alt.value(3), alt.value(1), empty=False),
        tooltip=[
            alt.Tooltip("entity:N"),
            alt.Tooltip("form:N"),
            alt.Tooltip("share:N", title="knows: base → adapter"),
        ],
    )
    # Grey of the middle can be read on a light page and on a dark one.
    texts = cells.mark_text(fontSize=12, color="#808792", fontWeight="bold").encode(text="share:N")
    return alt.layer(boxes.add_params(pick), texts).properties(height=30 * len(heat.rows) + 40)


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


def show_answers(answers: list[Answer]) -> None:
    """One model's answers, with what shows the knowledge marked."""
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            st.caption("greedy" if number == 0 else f"sample {number}")
        st.html(pieces_html(answer.pieces))


def show_training(choice: Choice) -> None:
    """The curves of training, where its progress was kept."""
    charts = training_charts(choice.events())
    if charts:
        st.markdown("#### Training")
    for title, chart in charts:
        st.caption(title)
        show_chart(chart)


def show_audit(choice: Choice) -> None:
    """What was tried on the adapter, and what came back."""
    audit = choice.audit()
    if not audit:
        return
    st.markdown("#### Does it last?")
    st.text(printable(str(audit["text"])))
    if chart := audit_chart(audit["rows"]):
        show_chart(chart)
    columns = {"name": "tried", "leak": "topic leaks", "choice": "topic choice", "neighbours": "neighbours"}
    st.dataframe(
        [
            {
                title: value if isinstance(value := row.get(key), str) or value is None else f"{value:.0%}"
                for key, title in columns.items()
            }
            for row in audit["rows"]
        ],
        hide_index=True,
    )


show()
