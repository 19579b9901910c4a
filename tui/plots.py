"""Live plots of training: loss, divergence from the base, and leaks."""

from textual.app import ComposeResult
from textual.containers import Container
from textual_plot import HiResMode, PlotWidget

from unlearn_mlx.session.progress import Point, Progress

TITLES = {
    "loss": "loss, nats a token",
    "retain": "retain, nats",
    "leak": "held-out leaks, share",
}


class Measure(PlotWidget, can_focus=False):
    """One measure by step."""

    def __init__(self, title: str, id: str) -> None:
        super().__init__(id=id, allow_pan_and_zoom=False)
        self._title = self.border_title = title

    def on_mount(self) -> None:
        """A plot of few lines has no room for wide margins."""
        self.margin_left, self.margin_bottom, self.margin_top = 6, 2, 0
        self._points: list[Point] = []

    def on_resize(self) -> None:
        """As many ticks as there is room for."""
        self._set_ticks()

    def _set_ticks(self) -> None:
        if self._points:
            self.set_xticks(step_ticks(self._points[-1][0], self.size.width - self.margin_left))

    def show(self, points: list[Point]) -> None:
        """Draw these, from zero."""
        self._points = points
        self.clear()
        if not points:
            self.border_title = self._title
            return
        # What lies near zero is hard to see; the end of a title is cut off where there is no room.
        self.border_title = f"{points[-1][1]:.2f} {self._title}"
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        last, top = max(xs) or 1, max(ys) * 1.05 or 1
        self.set_xlimits(0, last * 1.05)  # a mark at the very edge would be cut off
        self._set_ticks()
        # A tick at the lower limit itself would stand on the axis, a line below the values that it is for.
        self.set_ylimits(-top * 1e-6, top)
        if len(points) > 1:
            self.plot(xs, ys, hires_mode=HiResMode.BRAILLE)
        if len(points) < 8:  # the few of the validations would not be seen as a line
            self.scatter(xs, ys, marker="●")


def step_ticks(last: float, width: int) -> list[float]:
    """The steps that are named below a plot of so many columns: first, middle and last, where they fit."""
    room = len(f"{last:.0f}") + 2  # and a space on either side
    if last >= 2 and width >= 3 * room:
        return [0, last // 2, last]
    return [0, last] if width >= 2 * room else [0]


class Plots(Container):
    """Three plots beside or above each other."""

    def compose(self) -> ComposeResult:
        """A plot a measure."""
        for name, title in TITLES.items():
            yield Measure(title, id=f"plot-{name}")

    def show(self, progress: Progress) -> None:
        """Draw what is known."""
        for name in TITLES:
            self.query_one(f"#plot-{name}", Measure).show(getattr(progress, name))
