"""Text that others wrote, put on a page as text: never as Markdown or HTML."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from unlearn_mlx.leakage.names import Leak
from unlearn_mlx.session.conversation import leak_pieces
from unlearn_mlx.text.printable import one_line, printable

if TYPE_CHECKING:
    from unlearn_mlx.reporting.report import TableRow

STYLE = """<style>
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.55; }
.said mark { background: rgba(255, 75, 75, 0.28); color: inherit; border-bottom: 2px solid #ff4b4b;
  border-radius: 3px; padding: 0 2px; }
.said .cursor { opacity: 0.5; }
.wide, .st-key-heat { overflow-x: auto; }
.metrics { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.metrics th, .metrics td { padding: 0.35rem 0.6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid rgba(128, 136, 146, 0.3); }
.metrics th { opacity: 0.7; font-weight: 400; }
.metrics th:first-child, .metrics td:first-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 7.5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; }
.figures b { display: block; font-size: 2rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span, .figures small { display: block; line-height: 1.4; }
.figures small { opacity: 0.7; }
.stMainBlockContainer { padding-top: 4.75rem; }
.stMainBlockContainer .stButton button { height: auto; min-height: 2.5rem; }
.stMainBlockContainer .stButton button p { white-space: normal; overflow: visible; text-align: start; }
/* Each page has a Stop of its own, which leaves it whole; this one would cut off its script. */
[data-testid="stStatusWidget"] button { display: none; }
/* Streamlit shows the end of a page that has a field below: examples are shown from their beginning. */
.stMain:has(.st-key-examples) { display: flex; flex-direction: column; overflow: hidden; }
.stMain:has(.st-key-examples) .stMainBlockContainer { flex: 1 1 auto; min-height: 0; overflow-y: auto; }
[data-testid="stBottomBlockContainer"] { padding-bottom: 1.5rem; }
@media (max-width: 40rem) {
  .metrics { font-size: 0.85rem; }
  .metrics th, .metrics td { padding: 0.3rem 0.3rem; white-space: normal; }
  .metrics th:first-child, .metrics td:first-child { min-width: 6.5rem; }
}
</style>"""

_IS_NARROW = "windowSize()[0] < 640"  # asked by a chart, in the browser
_MARKDOWN = re.compile(r"([^\w\s]|_)")


def label(text: str) -> str:
    """The text for a place that reads Markdown (a button, a heading): every sign is escaped."""
    # A backslash before a sign beyond ASCII would be shown.
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}" if match[0].isascii() else match[0], one_line(text))


def answer_html(answer: str, leak: Leak | None, is_open: bool = False) -> str:
    """An answer as HTML with its leak marked, and a cursor where more of it may come."""
    return pieces_html(leak_pieces(answer, leak), is_open)


def pieces_html(pieces: Sequence[tuple[str, bool]], is_open: bool = False) -> str:
    """Pieces of a text as HTML, some marked; all of its own signs are escaped."""
    text = "".join(
        f"<mark>{html.escape(piece)}</mark>" if is_marked else html.escape(piece)
        for piece, is_marked in ((printable(piece), is_marked) for piece, is_marked in pieces)
    )
    cursor = '<span class="cursor"> ▌</span>' if is_open else ""
    return f'<div class="said" dir="auto">{text}{cursor}</div>'


def text_html(text: str) -> str:
    """A text as HTML, with nothing marked."""
    return pieces_html([(text, False)])


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as HTML, which a phone can show whole; all of its texts are escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="metrics"><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figures_html(figures: "Iterable[TableRow]") -> str:
    """Figures as HTML, large: what the base has and what the adapter has, and how far that is a change."""

    def figure(row: "TableRow") -> str:
        # The intervals are in the table below.
        base, adapter, change = (value.split(" [")[0] for value in (row.base, row.adapter, row.change))
        found = f": {row.found}" if row.found else ""
        texts = (f"{base} → {adapter}", row.name, f"{change} points{found}")
        value, name, more = (html.escape(printable(text)) for text in texts)
        return f"<div><b>{value}</b><span>{name}</span><small>{more}</small></div>"

    return f'<div class="figures">{"".join(map(figure, figures))}</div>'


def shade() -> Literal["light", "dark"]:
    """Whether the page is light or dark."""
    return st.context.theme.type or "light"


def show_chart(chart: dict[str, Any]) -> None:
    """A chart of the report, in the colours of a light or dark page."""
    from unlearn_mlx.reporting.charts import THEMES

    theme = THEMES[shade()]
    # Long names are cut and a legend is broken where a phone has no room for them.
    axis = {**theme["axis"], "labelLimit": {"expr": f"{_IS_NARROW} ? 150 : 300"}}
    legend = {**theme["legend"], "columns": {"expr": f"{_IS_NARROW} ? 3 : 6"}}
    st.vega_lite_chart({**chart, "config": {**theme, "axis": axis, "legend": legend}}, theme=None)
