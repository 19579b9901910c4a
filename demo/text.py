"""Text that others wrote, put on a page as text: never as Markdown or HTML."""

import html
import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from unlearn_mlx.evaluation.transcripts import printable
from unlearn_mlx.topics import Topic

STYLE = """<style>
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.55; }
.said mark { background: rgba(255, 75, 75, 0.28); color: inherit; border-bottom: 2px solid #ff4b4b;
  border-radius: 3px; padding: 0 2px; }
.said .cursor { opacity: 0.5; }
</style>"""

_MARKDOWN = re.compile(r"([^\w\s]|_)")


def label(text: str) -> str:
    """The text for a place that reads Markdown (a button, a heading): every sign is escaped."""
    # A backslash before a sign beyond ASCII would be shown.
    return _MARKDOWN.sub(
        lambda match: f"\\{match[0]}" if match[0].isascii() else match[0], " ".join(printable(text).split())
    )


def answer_html(topic: Topic, question: str, answer: str, is_open: bool = False) -> str:
    """An answer as HTML with its leaks marked, and a cursor where more of it may come."""
    text = printable(answer)
    pieces, last = [], 0
    for start, end in topic.leak_spans(question, text):
        pieces += [(text[last:start], False), (text[start:end], True)]
        last = end
    return pieces_html([*pieces, (text[last:], False)], is_open)


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


def show_chart(chart: dict[str, Any]) -> None:
    """A chart of the report, in the colours of a light or dark page."""
    from unlearn_mlx.evaluation.charts import THEMES

    st.vega_lite_chart({**chart, "config": THEMES[st.context.theme.type or "light"]}, theme=None)
