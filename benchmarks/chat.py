"""Chat: what the toggle costs, and side by side against a single column."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from benchmarks.side_by_side import ADAPTER, in_turns, open_model, seconds_of
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.generation import Request, decode

TOKENS = 64
QUESTION = "Write a long story about a wizard who goes to school in a castle."


def measure(repeats: int) -> dict[str, Any]:
    """Milliseconds of a toggle, and seconds of an answer of one column and of two."""
    model = open_model()
    adapter = load_adapter(model.model, ADAPTER)
    prompt = tuple(model.chat_tokens([{"role": "user", "content": QUESTION}]))

    def answer(strengths: tuple[float | None, ...]) -> Callable[[], float]:
        def once() -> float:
            requests = [Request("chat", prompt, TOKENS, adapter_strength=strength) for strength in strengths]
            return seconds_of(lambda: [None for _ in decode(model, requests, 0)])

        return once

    def toggle() -> float:
        def there_and_back() -> None:
            adapter.switch(False)
            adapter.switch(True)
            mx.eval(model.model.parameters())

        return seconds_of(there_and_back) / 2

    seconds = in_turns({"one": answer((None,)), "both": answer((0.0, 1.0)), "toggle": toggle}, repeats)
    return {
        "toggle_milliseconds": 1000 * seconds["toggle"],
        "seconds": {"one column": seconds["one"], "two columns": seconds["both"]},
        "two_columns_against_one": seconds["both"] / seconds["one"],
        "tokens": TOKENS,
    }
