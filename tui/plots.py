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

    def show(self, points: list[Point]) -> None:
        """Draw these, from zero."""
        self.clear()
        if not points:
            self.border_title = self._title
            return
        self.border_title = f"{self._title}: {points[-1][1]:.2f}"  # what lies near zero is hard to see
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        last = max(xs) or 1
        self.set_xlimits(0, last * 1.05)  # a mark at the very edge would be cut off
        self.set_xticks([0, last // 2, last] if last > 1 else [0, last])
        self.set_ylimits(0, max(ys) * 1.05 or 1)
        if len(points) > 1:
            self.plot(xs, ys, hires_mode=HiResMode.BRAILLE)
        if len(points) < 8:  # the few of the validations would not be seen as a line
            self.scatter(xs, ys, marker="●")


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
