"""The terminal app on a run, its chat answered by a script: ``python -m benchmarks.scripted_chat RUN``.

The script says a hundred tokens a second, faster than any model that a person would chat with here.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tui.app import UnlearnApp
from unlearn_mlx.inference.asking import Answering, Piece
from unlearn_mlx.session.chat_engine import ChatEngine

RATE = 100  # tokens a second, of each of the modes
TOKENS = 512  # the longest answer that the app lets anybody ask for
WORDS = "Harry told the old baker of the town that nobody had seen Hogwarts in the snow that winter .".split()


class ScriptedEngine:
    """Answers every question with the same long text."""

    def answer(self, conversations: dict[str, Any], **_: Any) -> Answering:
        """Begin to say it, in a thread of its own."""
        answering = Answering()
        threading.Thread(target=_say, args=(list(conversations), answering), daemon=True).start()
        return answering

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """It is."""
        return True

    def close(self, at_once: bool = False) -> None:
        """Its threads end with the process."""


def _say(modes: list[str], answering: Answering) -> None:
    began = time.perf_counter()
    for number in range(TOKENS):
        time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        if answering.stop.is_set():
            break
        for mode in modes:
            answering.pieces.put(Piece(mode, f" {WORDS[number % len(WORDS)]}"))
    for mode in modes:
        answering.pieces.put(Piece(mode, "", finished=True))
    answering.pieces.put(None)


def main() -> None:
    """Run the app."""
    engine: Any = ScriptedEngine()

    def prepare(chat: ChatEngine, model_name: str) -> Any:
        chat._engine = engine
        return engine

    with mock.patch.object(ChatEngine, "prepare", prepare):
        UnlearnApp(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
