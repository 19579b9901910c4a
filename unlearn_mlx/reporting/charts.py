"""The charts of a report, as Vega-Lite specifications that Altair makes and checks."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from unlearn_mlx.evaluation.keys import is_share
from unlearn_mlx.evaluation.records import AuditRow, Measured
from unlearn_mlx.evaluation.schema import SCOPES, interval_of, shown_metrics
from unlearn_mlx.runs.records import Event, ProgressEvent, ValidationEvent, curve, forget_later
from unlearn_mlx.text.printable import printable

Spec = dict[str, Any]

MODELS = ["base", "adapter"]
AUDITED = {"neighbours": "neighbours' choice right", "leak": "topic leaks"}
# What an answer is taken for, in the colours of bar charts, on light and on dark.
LABEL_COLOURS = {
    "leak": "#d3382f",
    "known": "#3a9a5b",
    "fictional": "#4b8fe0",
    "ignorance": "#c2a53a",
    "refusal": "#9a6fc4",
    "broken": "#8a94a3",
}
LINE_HEIGHT, FRAME = 30, 50  # pixels of a row in a chart with names at its left, of axis and legend


def theme(ink: str, faint: str, base: str, adapter: str) -> Spec:
    """Colours of the page for Vega-Lite's configuration."""
    text = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal"}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "range": {"category": [base, adapter]},
        "axis": {**text, "gridColor": faint, "domainColor": faint, "tickColor": faint},
        "legend": {"labelColor": ink, "orient": "top", "symbolOpacity": 1},
        "text": {"color": ink},
        "rule": {"color": faint},
        "line": {"color": adapter},
        "point": {"color": adapter},
    }


THEMES = {
    "light": theme("#3b424d", "#d8dce2", "#8a94a3", "#1f6fd1"),
    "dark": theme("#c3cad5", "#3a414c", "#8d97a6", "#6cabf7"),
}


def change_chart(measured: Measured) -> Spec | None:
    """Base and adapter in every metric that is a share, with their 95 % intervals where there are any."""
    rows: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for metric in shown_metrics(measured):
        key, name = metric.key, metric.name
        if not is_share(key):
            continue
        links.append({"metric": name, **{model: measured.of(model)[key] for model in MODELS}})
        for model in MODELS:
            low, high = interval_of(measured, key, model) or (None, None)
            rows.append(
                {"metric": name, "model": model, "share": measured.of(model)[key], "low": low, "high": high}
            )
    if not rows:
        return None
    y = alt.Y("metric:N", title=None, sort=[link["metric"] for link in links])
    colour = alt.Color("model:N", sort=MODELS, title=None)
    tooltip = [
        alt.Tooltip("metric:N"),
        alt.Tooltip("model:N"),
        alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%", title="95 % from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
    ]
    link = alt.Chart(_data(links)).mark_rule(strokeWidth=2).encode(y=y, x=_share("base:Q"), x2="adapter")
    # The two intervals of a metric lie above each other, not over each other.
    offset = alt.YOffset("model:N", sort=MODELS, scale=alt.Scale(paddingOuter=1))
    models = alt.Chart(_data(rows))
    interval = (
        models.mark_rule(strokeWidth=3, opacity=0.45)
        .encode(y=y, yOffset=offset, x=_share("low:Q"), x2="high", color=colour)
        .transform_filter("isValid(datum.low)")
    )
    point = models.mark_point(filled=True, size=110, opacity=1).encode(
        y=y, yOffset=offset, x=_share("share:Q"), color=colour, tooltip=tooltip
    )
    return _spec(alt.layer(link, interval, point), len(links) * LINE_HEIGHT + FRAME)


def character_chart(measured: Measured) -> Spec | None:
    """What the answers of base and adapter were taken for, as shares of all answers of a scope."""
    rows: list[dict[str, Any]] = [
        {"who": f"{scope}, {model}", "label": label, "share": measured.of(model)[key], "order": order}
        for scope in SCOPES
        for model in MODELS
        for order, label in enumerate(LABEL_COLOURS)
        if (key := f"{scope}/label {label}") in measured.of(model)
    ]
    if not rows:
        return None
    colours = alt.Scale(domain=list(LABEL_COLOURS), range=list(LABEL_COLOURS.values()))
    bar = (
        alt.Chart(_data(rows))
        .mark_bar(height=18)
        .encode(
            y=alt.Y("who:N", title=None, sort=[row["who"] for row in rows]),
            x=_share("share:Q"),
            color=alt.Color("label:N", title=None, scale=colours),
            order="order:Q",
            tooltip=[alt.Tooltip("who:N"), alt.Tooltip("label:N"), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return _spec(bar, len({row["who"] for row in rows}) * LINE_HEIGHT + FRAME)


def training_charts(events: Iterable[Event]) -> list[tuple[str, Spec]]:
    """What training logged, by step: a title and a chart a measure. Validations are points."""
    steps: dict[int, ProgressEvent] = {}
    validations: dict[int, ValidationEvent] = {}
    for event in events:
        # Steps that a resumed training went through again count as it went through them last.
        if isinstance(event, ProgressEvent) and event.forget_loss is not None:
            forget_later(steps, event.done)
            forget_later(validations, event.done)
            steps[event.done] = event
        elif isinstance(event, ValidationEvent):
            validations[event.step] = event
    charts = []
    for measure, title, form in (
        ("forget_loss", "Loss on the new answers, nats a token", ".2f"),
        ("retain_kl", "Divergence from the base where it must stay, nats a token", ".2f"),
        ("leak_rate", "Held-out questions that leak", "%"),
    ):
        trained = [{"step": step, "value": value} for step, value in curve(steps, measure)]
        checked = [
            {"step": step, "value": value, "kept": "best so far" if validations[step].best else "not kept"}
            for step, value in curve(validations, measure)
        ]
        if len(trained) + len(checked) < 2:
            continue
        x = alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=8))
        y = alt.Y("value:Q", title=None, axis=alt.Axis(format=form), scale=alt.Scale(zero=True))
        line = alt.Chart(_data(trained or checked)).mark_line(strokeWidth=2).encode(x=x, y=y)
        point = (
            alt.Chart(_data(checked))
            .mark_point(filled=True, size=80)
            .encode(
                x=x,
                y=y,
                tooltip=[
                    alt.Tooltip("step:Q"),
                    alt.Tooltip("value:Q", format=form, title="validation"),
                    alt.Tooltip("kept:N", title="adapter"),
                ],
            )
        )
        charts.append((title, _spec(alt.layer(line, point) if checked else line, 200)))
    return charts


def audit_chart(rows: Sequence[AuditRow]) -> Spec | None:
    """What leaks, and what of the neighbours is there, in every state that an audit tried."""
    values = [
        {"order": number, "name": printable(row.name), "measure": measure, "share": row.share(key)}
        for number, row in enumerate(rows)
        for key, measure in AUDITED.items()
        if row.share(key) is not None
    ]
    if not values:
        return None
    names = list(AUDITED.values())
    colours = alt.Scale(domain=names, range=[LABEL_COLOURS["known"], LABEL_COLOURS["leak"]])
    point = (
        alt.Chart(_data(values))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            y=alt.Y("name:N", title=None, sort=alt.EncodingSortField("order")),
            x=_share("share:Q"),
            color=alt.Color("measure:N", title=None, sort=names, scale=colours),
            # No legend of its own means none at all, since it has one with the colours.
            shape=alt.Shape("measure:N", title=None, sort=names),
            tooltip=[
                alt.Tooltip("name:N"),
                alt.Tooltip("measure:N"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    return _spec(point, len({value["name"] for value in values}) * LINE_HEIGHT + FRAME)


def pareto_chart(runs: Sequence[dict[str, Any]]) -> Spec:
    """Runs by what leaks and what of the neighbours is kept; a line joins those that no other beats.

    A run is {"name", "leak", "kept", "front"}.
    """
    x = alt.X(
        "leak:Q",
        title="topic: open questions that leak (less is better)",
        axis=alt.Axis(format="%", tickCount=6),
        # Room for the names of the runs at the right.
        scale=alt.Scale(domain=[0, 1.2 * max(0.05, *(run["leak"] for run in runs))], nice=False),
    )
    y = alt.Y(
        "kept:Q",
        title="neighbours kept (more is better)",
        axis=alt.Axis(format="%", tickCount=6),
        scale=alt.Scale(zero=False, padding=20),
    )
    clean = [{**run, "name": printable(run["name"])} for run in runs]
    front = [run for run in clean if run["front"]]
    line = alt.Chart(_data(front)).mark_line(interpolate="step-after", strokeDash=[5, 4]).encode(x=x, y=y)
    everything = alt.Chart(_data([{**run, "standing": _standing(run)} for run in clean])).encode(x=x, y=y)
    point = everything.mark_point(filled=True, size=130, opacity=1).encode(
        color=alt.Color("standing:N", title=None, sort=["beaten by another", "on the Pareto front"]),
        tooltip=[
            alt.Tooltip("name:N"),
            alt.Tooltip("leak:Q", format=".1%"),
            alt.Tooltip("kept:Q", format=".1%"),
        ],
    )
    name = everything.mark_text(align="left", dx=10, dy=-8, limit=160).encode(text="name:N")
    return _spec(alt.layer(line, point, name), 380)


def _standing(run: dict[str, Any]) -> str:
    return "on the Pareto front" if run["front"] else "beaten by another"


def _share(field: str) -> alt.X:
    axis, scale = alt.Axis(format="%", tickCount=5), alt.Scale(domain=[0, 1], clamp=True)
    return alt.X(field, title=None, axis=axis, scale=scale)


def _data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def _spec(chart: Any, height: int) -> Spec:
    spec: Spec = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding")
    ).to_dict()
    spec.pop("config", None)  # the page's theme says it
    return spec
