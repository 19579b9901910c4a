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
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner import trainer as stock

from benchmarks.side_by_side import ROWS, open_model, product_threads
from benchmarks.training import BATCH_SIZE, peer, shipped_rows, train_stock
from unlearn_mlx.compute.cpu_blas import core_count
from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.config import make_settings
from unlearn_mlx.inference import generation
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.records import ProgressEvent, StageEvent
from unlearn_mlx.runs.run import create_run
from unlearn_mlx.topics import load_topic

PEER_BATCH = 32
PRESET = "standard"


def measure(repeats: int, preset: str = PRESET) -> dict[str, Any]:
    """Minutes of both by stage, and their ratio; measured once, however many repeats are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        source = open_model().source
        run = create_run(
            Path(folder) / "run", load_topic(ROWS / "topic.toml"), source.identity, make_settings(preset), ""
        )
        began = time.time()
        with recorded_requests() as asked:
            run_stages(run)
        minutes: dict[str, float] = {}
        for event in run.events():
            if isinstance(event, StageEvent) and event.state == "done":
                minutes[event.stage] = (event.time - began) / 60
                began = event.time
        steps = max(
            event.total
            for event in run.events()
            if isinstance(event, ProgressEvent) and event.forget_loss is not None
        )
    with product_threads(core_count()):
        plain = plain_script(asked, steps)
    return {
        "preset": preset,
        "answers": len(asked),
        "training_steps": steps,
        "minutes": {"ours": minutes, "plain": plain},
        "times_faster": sum(plain.values()) / sum(minutes.values()),
    }


@contextmanager
def recorded_requests() -> Iterator[list[Request]]:
    """Every request that is answered meanwhile, by this process or by a worker."""
    asked: list[Request] = []
    decode, pool_map = generation.decode, WorkerPool.map
    is_shared = False

    def decoding(model: ChatModel, requests: Sequence[Request], *rest: Any) -> Iterator[Any]:
        if not is_shared:
            asked.extend(requests)
        return decode(model, requests, *rest)

    def mapping(pool: WorkerPool, function: Any, kept: Any, parts: Any, *rest: Any, **more: Any) -> Any:
        nonlocal is_shared
        if function is not generation.answer_parts:
            return pool_map(pool, function, kept, parts, *rest, **more)
        asked.extend(request for part in parts for request in part)
        is_shared = True
        try:
            return pool_map(pool, function, kept, parts, *rest, **more)
        finally:
            is_shared = False

    with mock.patch.object(generation, "decode", decoding), mock.patch.object(WorkerPool, "map", mapping):
        yield asked


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
    rows = list(itertools.islice(itertools.cycle(entries), steps * BATCH_SIZE))
    peer(model, train_stock, rows, entries[:BATCH_SIZE], stock.iterate_batches)
    return {"generation": (answered - began) / 60, "train": (time.perf_counter() - answered) / 60}
