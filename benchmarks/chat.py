"""Chat: what the toggle costs, and side by side against a single column."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.side_by_side import ADAPTER, in_turns, open_model, seconds_of
from unlearn_mlx.compute.memory import free_bytes
from unlearn_mlx.inference.decoder import Decoder
from unlearn_mlx.inference.row_adapters import BASE
from unlearn_mlx.inference.rows import Row, RowRequest

TOKENS = 64
QUESTION = "Write a long story about a wizard who goes to school in a castle."


def measure(repeats: int) -> dict[str, Any]:
    """Milliseconds of a toggle, and seconds of an answer of one column and of two."""
    model = open_model()
    prompt = tuple(model.chat_tokens([{"role": "user", "content": QUESTION}]))

    decoder = Decoder(model, free_bytes())

    def answer(*folders: Path | None) -> Callable[[], float]:
        requests = [RowRequest(prompt, TOKENS, adapter=folder, is_kept=False) for folder in folders]

        def once() -> None:
            for request in requests:
                decoder.start(Row(request, lambda news: None))
            while decoder.count:
                decoder.advance()

        return lambda: seconds_of(once)

    weights = decoder.adapters.weights(ADAPTER)

    def toggle() -> float:
        def there_and_back() -> None:
            decoder.adapters.use([BASE])
            decoder.adapters.use([weights])
            mx.eval(model.model.parameters())

        return seconds_of(there_and_back) / 2

    seconds = in_turns({"one": answer(ADAPTER), "both": answer(None, ADAPTER), "toggle": toggle}, repeats)
    return {
        "toggle_milliseconds": 1000 * seconds["toggle"],
        "seconds": {"one column": seconds["one"], "two columns": seconds["both"]},
        "two_columns_against_one": seconds["both"] / seconds["one"],
        "tokens": TOKENS,
    }
