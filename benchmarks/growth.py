"""Growth: time and memory of guarded answers from 64 to 2,048 questions, and of training by rows."""

import itertools
from functools import partial
from typing import Any

from benchmarks.generation import guarded_prompts
from benchmarks.side_by_side import open_model, seconds_of
from benchmarks.training import BATCH_SIZE, HELD_OUT, ours, shipped_rows
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.inference.generation import Request, generate

QUESTIONS = (64, 128, 256, 512, 1024, 2048)
ROWS = (64, 128, 256)
ANSWER_TOKENS = 12  # few, so that the largest takes minutes


def measure(repeats: int) -> dict[str, Any]:
    """A row of the table for each number of questions, and for each number of training rows."""
    model = open_model()
    # The shipped questions, told apart by a number where there are too few.
    prompts = guarded_prompts(model, max(QUESTIONS))
    answers = []
    for count in QUESTIONS:
        requests = [Request(str(n), prompt, ANSWER_TOKENS) for n, prompt in enumerate(prompts[:count])]
        reset_peak()
        seconds = seconds_of(partial(generate, model, requests, 0))
        answers.append({"questions": count, "seconds": seconds, "peak_bytes": peak_bytes()})
    entries = shipped_rows()
    held_out = entries[-HELD_OUT:]
    training = []
    for count in ROWS:
        rows = list(itertools.islice(itertools.cycle(entries[:-HELD_OUT]), count))
        reset_peak()
        found = ours(model, rows, held_out[:BATCH_SIZE])
        training.append({"rows": count, "tokens_per_second": found["rate"], "peak_bytes": peak_bytes()})
    return {"guarded_answers": answers, "training": training}
