"""Growth: time and memory of guarded answers from 64 to 2,048 questions, and of training by rows.

``python -m benchmarks.growth FILE`` draws docs/images/growth.svg of what ``--share FILE`` kept.
"""

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks.generation import guarded_prompts
from benchmarks.side_by_side import ROOT, open_model, seconds_of
from benchmarks.training import BATCH_SIZE, HELD_OUT, ours, shipped_rows
from unlearn_mlx.compute.memory import peak_bytes, reset_peak
from unlearn_mlx.inference.generation import Request, generate

PICTURE = ROOT / "docs" / "images" / "growth.svg"
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


def draw(measured: dict[str, Any], picture: Path = PICTURE) -> None:
    """Seconds and memory of guarded answers, beside each other."""
    rows = [
        {
            "questions": row["questions"],
            "seconds": row["seconds"],
            "gigabytes": row["peak_bytes"] / 1e9,
        }
        for row in measured["guarded_answers"]
    ]
    steps = alt.X(
        "questions:Q",
        title="questions",
        scale=alt.Scale(type="log", base=2),
        axis=alt.Axis(values=[row["questions"] for row in rows], format="d"),
    )
    table = alt.InlineData(values=rows)
    seconds = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(x=steps, y=alt.Y("seconds:Q", scale=alt.Scale(type="log", base=2)))
    )
    memory = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(x=steps, y=alt.Y("gigabytes:Q", title="peak, GB", scale=alt.Scale(zero=True)))
    )
    sides = [side.properties(width=280, height=160) for side in (seconds, memory)]
    chart = alt.hconcat(*sides).properties(background="white")
    picture.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["growth"])
