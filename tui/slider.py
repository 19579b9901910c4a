"""A number that is set by keys or by the mouse."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

TRACK = 8  # cells


class Slider(Widget, can_focus=True):
    """A name, a track and a value; left and right change it by ``step``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,minus", "change(-1)", "Less", show=False),
        Binding("right,plus", "change(1)", "More", show=False),
    ]
    value: reactive[float] = reactive(0.0)

    class Changed(Message):
        """Another value was set."""

        def __init__(self, slider: "Slider", value: float) -> None:
            super().__init__()
            self.slider, self.value = slider, value

    def __init__(self, label: str, low: float, high: float, step: float, value: float, id: str) -> None:
        super().__init__(id=id)
        self.label, self.low, self.high, self.step = label, low, high, step
        self.set_reactive(Slider.value, value)

    def render(self) -> Content:
        """The name, the track with its knob, and the value."""
        knob = round((self.value - self.low) / (self.high - self.low) * (TRACK - 1))
        track = "━" * knob + "●" + "─" * (TRACK - 1 - knob)
        return Content(f"{self.label} {track} {self.value:g}")

    def validate_value(self, value: float) -> float:
        """Keep it on the steps and inside the bounds."""
        steps = round((value - self.low) / self.step)
        return round(min(self.high, max(self.low, self.low + steps * self.step)), 6)

    def watch_value(self, value: float) -> None:
        """Tell who listens."""
        self.post_message(self.Changed(self, value))

    def action_change(self, steps: int) -> None:
        """Go up or down by steps."""
        self.value += steps * self.step

    def on_click(self, event: Click) -> None:
        """Put the knob where the mouse is."""
        place = event.x - len(self.label) - 1
        if 0 <= place < TRACK:
            self.value = self.low + place / (TRACK - 1) * (self.high - self.low)
