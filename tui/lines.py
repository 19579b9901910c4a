"""Lines of text as they come, wrapped anew when there is more or less room."""

from collections import deque

from rich.text import Text
from textual.events import Resize
from textual.widgets import RichLog

MOST_LINES = 5000


class Lines(RichLog):
    """A log that keeps what it was told, so that it can be wrapped again."""

    def __init__(self, name: str, title: str) -> None:
        super().__init__(id=name, classes="panel", wrap=True, min_width=20, max_lines=MOST_LINES)
        self.border_title = title
        self._texts: deque[Text] = deque(maxlen=MOST_LINES)
        self._width = 0

    def add(self, text: Text) -> None:
        """Write one more."""
        self._texts.append(text)
        self.write(text)

    def clear(self) -> "Lines":
        """Forget all of them."""
        self._texts.clear()
        super().clear()
        return self

    def on_resize(self, event: Resize) -> None:
        """Wrap everything anew; what was written before there was a size is written by the log itself."""
        was, self._width = self._width, event.size.width
        if was not in (0, self._width):
            texts = list(self._texts)
            self.clear()
            for text in texts:
                self.add(text)
