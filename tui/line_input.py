"""A line to write in."""

from textual.events import Key, Paste
from textual.widgets import Input


class LineInput(Input):
    """An input of one line that leaves the first question mark to the help, and keeps all that is pasted."""

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Whether a key is written here."""
        is_help = character == "?" and not self.value
        return not is_help and super().check_consume_key(key, character)

    async def _on_key(self, event: Key) -> None:
        # Decided here, once all keys before it are written: typed fast, a line is still empty for the app.
        if event.character == "?" and not self.value:
            event.prevent_default()

    def on_input_changed(self, event: Input.Changed) -> None:
        """The footer shows the help where a key brings it."""
        self.screen.refresh_bindings()

    def _on_paste(self, event: Paste) -> None:
        event.prevent_default()  # Textual's own keeps the first line alone, which may be empty
        event.stop()
        text = " ".join(line.strip() for line in event.text.splitlines() if line.strip())
        self.replace(text, *self.selection)
