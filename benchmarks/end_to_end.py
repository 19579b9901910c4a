"""The whole ``unlearn run`` against a plain script of stock calls that makes the same counts.

Our run is recorded: every prompt that it has answered, with its length limit and temperature, and the
number of training steps. The plain script then answers the same prompts by ``batch_generate`` with
mlx-lm's own sampler, and takes as many steps by mlx-lm's ``train``. It needs no filter, scores no
multiple choice and writes no files: what it leaves out counts for it.
"""

import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner import trainer as stock

from benchmarks.side_by_side import ROWS, open_model
from benchmarks.training import BATCH_ROWS, peer, shipped_rows, train_stock
from unlearn_mlx.config import make_settings
from unlearn_mlx.language_model import generation
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.language_model.generation import Request
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs import STAGES, create_run
from unlearn_mlx.topics import load_topic

PEER_BATCH = 32
PRESET = "standard"


def measure(repeats: int, preset: str = PRESET) -> dict[str, Any]:
    """Minutes of both by stage, and their ratio; measured once, however many repeats are asked for."""
    asked: list[Request] = []
    recorded = generation.decode

    def recording(model: ChatModel, requests: Sequence[Request], *rest: Any) -> Iterator[Any]:
        asked.extend(requests)
        return recorded(model, requests, *rest)

    with tempfile.TemporaryDirectory() as folder:
        source = open_model().source
        known = {"name": source.name, "revision": source.revision, "sha256": source.weights_sha256}
        run = create_run(
            Path(folder) / "run", load_topic(ROWS / "topic.toml"), known, make_settings(preset), ""
        )
        minutes: dict[str, float] = {}
        generation.decode = recording  # type: ignore[assignment]
        try:
            for stage in STAGES:
                began = time.perf_counter()
                run_stages(run, [stage])
                minutes[stage] = (time.perf_counter() - began) / 60
        finally:
            generation.decode = recorded
        steps = max(
            event["total"] for event in run.events() if event["kind"] == "progress" and "forget_loss" in event
        )
    plain = plain_script(asked, steps)
    return {
        "preset": preset,
        "answers": len(asked),
        "training_steps": steps,
        "minutes": {"ours": minutes, "plain": plain},
        "times_faster": sum(plain.values()) / sum(minutes.values()),
    }


def plain_script(asked: Sequence[Request], steps: int) -> dict[str, float]:
    """Minutes of the stock calls."""
    model = open_model()
    groups: dict[tuple[float, int], list[list[int]]] = defaultdict(list)
    for request in asked:
        groups[request.temperature, request.max_tokens].append(list(request.tokens))
    began = time.perf_counter()
    for (temperature, max_tokens), prompts in groups.items():
        batch_generate(
            model.model,
            model.tokenizer,
            prompts,
            max_tokens=max_tokens,
            sampler=make_sampler(temperature, top_p=0.95 if temperature else 0.0),
            completion_batch_size=PEER_BATCH,
            prefill_batch_size=8,
        )
    answered = time.perf_counter()
    entries = shipped_rows()
    rows = list(itertools.islice(itertools.cycle(entries), steps * BATCH_ROWS))
    peer(model, train_stock, rows, entries[:BATCH_ROWS], stock.iterate_batches)
    return {"generation": (answered - began) / 60, "train": (time.perf_counter() - answered) / 60}
