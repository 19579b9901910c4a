"""Text that others wrote, shown as text: never as markup, and without control characters."""

from textual.content import Content

from unlearn_mlx.cli_view import plain
from unlearn_mlx.topics import Topic

BAR = "█"
REST = "░"


def printable(text: str) -> str:
    """The text without control characters and marks that turn its direction; line breaks stay."""
    return plain(text).plain


def one_line(text: str) -> str:
    """The printable text in a single line."""
    return " ".join(printable(text).split())


def shown(text: str, style: str = "") -> Content:
    """The text for a widget, as it stands."""
    return Content.styled(printable(text), style) if style else Content(printable(text))


def leak_spans(topic: Topic, question: str, answer: str) -> list[tuple[int, int]]:
    """Where an answer says names of the topic that its question did not say."""
    asked = topic.mentions(question)
    return [
        (start, end)
        for start, end, name in topic.mention_spans(answer)
        if not any(name in other for other in asked)
    ]


def leaked_names(topic: Topic, question: str, answer: str) -> list[str]:
    """The names that ``leak_spans`` marks, each once, in the order they are said."""
    spans = leak_spans(topic, question, answer)
    return list(dict.fromkeys(answer[start:end] for start, end in spans))


def with_leaks(topic: Topic | None, question: str, answer: str) -> Content:
    """An answer with its leaks set off: reversed and underlined, so that colour is not needed."""
    text = printable(answer)
    content = Content(text)
    if topic is not None:
        for start, end in leak_spans(topic, question, text):
            content = content.stylize("bold underline reverse", start, end)
    return content


def bar(share: float, width: int) -> str:
    """A share of one as a row of blocks."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return BAR * filled + REST * (width - filled)


def duration(seconds: float) -> str:
    """A time to wait, in the two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def gigabytes(count: float) -> str:
    """A number of bytes, readable."""
    return f"{count / 1024**3:.1f} GB"
