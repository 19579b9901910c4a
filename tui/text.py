"""Text that others wrote, shown as text: never as markup, and without control characters."""

from textual.content import Content

from unlearn_mlx.leakage.names import Leak
from unlearn_mlx.session.conversation import leak_pieces
from unlearn_mlx.text.printable import printable

BAR = "━"
REST = "╌"  # told apart without colour


def shown(text: str, style: str = "") -> Content:
    """The text for a widget, as it stands."""
    return Content.styled(printable(text), style) if style else Content(printable(text))


def with_leak(answer: str, leak: Leak | None) -> Content:
    """An answer with its leak set off: reversed and underlined, so that colour is not needed."""
    pieces = leak_pieces(answer, leak)
    return Content.assemble(
        *((text, "bold underline reverse") if is_leak else text for text, is_leak in pieces)
    )


def bar(share: float, width: int) -> Content:
    """A share of one as a line, the rest of it broken."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return Content.assemble((BAR * filled, "bold $text-success"), (REST * (width - filled), "$text-muted"))


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
