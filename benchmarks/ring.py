"""Ranks of mlx's ring on this machine against a worker process, and against none.

All do the same work in turns: answers, scores, and steps of training. ``python -m benchmarks.ring 4`` takes
four ranks instead of two; mlx makes no second group in a process.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from benchmarks.generation import ANSWER_TOKENS, guarded_prompts
from benchmarks.side_by_side import in_turns, open_model, seconds_of, shipped_questions
from benchmarks.training import BATCH_SIZE, settings_for, shipped_rows
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.group import other_ranks
from unlearn_mlx.compute.planner import usual_computation
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import model_workers
from unlearn_mlx.session.hosts import Hosts, started_ranks
from unlearn_mlx.sft import parallel
from unlearn_mlx.sft.batches import make_row, prefix_of
from unlearn_mlx.sft.loss import Weights

ANSWERS = 48
TEXTS = 64
STEPS = 2


def local_hosts(count: int) -> Hosts:
    """So many ranks on this machine."""
    return Hosts.model_validate({"hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * count})


def works(model: ChatModel) -> dict[str, Callable[[WorkerPool], Any]]:
    """What is measured, by name; each gives what it has found."""
    prompts = guarded_prompts(model, ANSWERS)
    requests = [Request(str(n), prompt, ANSWER_TOKENS, 0.8) for n, prompt in enumerate(prompts)]
    asked = shipped_questions()[:TEXTS]
    questions = [model.chat_tokens([{"role": "user", "content": question}]) for question in asked]
    texts = [[model.text_tokens("It is a small town by the sea, and a baker lives there.")] for _ in asked]
    rows = [make_row(model, row) for row in shipped_rows()[: STEPS * BATCH_SIZE]]

    def answers(workers: WorkerPool) -> list[str]:
        return [answer.text for answer in generate(model, requests, 0, workers=workers)]

    def scores(workers: WorkerPool) -> list[Any]:
        return [each[0] for each in model.log_probabilities(questions, texts, workers=workers)]

    def steps(workers: WorkerPool) -> list[Any]:
        adapter = new_adapter(model)
        way = usual_computation(current_device())
        training = parallel.Training(
            model, adapter, rows, [None] * len(rows), prefix_of(model, rows), Weights(0.0, 0.0), way
        )
        try:
            with parallel.shared_training(training, workers):
                chosen = [list(range(first, first + BATCH_SIZE)) for first in range(0, len(rows), BATCH_SIZE)]
                trees = [parallel.step_gradients(training, step, workers)[1] for step in chosen]
            return [np.array(array) for tree in trees for _, array in sorted(tree_flatten(tree))]
        finally:
            adapter.detach()

    return {"answers": answers, "scores": scores, "training steps": steps}


def new_adapter(model: ChatModel) -> Adapter:
    """A fresh adapter of the usual shape."""
    mx.random.seed(0)
    settings = settings_for(STEPS)
    return Adapter(model.model, LoraShape(settings.rank, settings.scale, len(model.model.layers)))


def difference(some: list[Any], others: list[Any]) -> float:
    """By how much two findings differ at the most, as a share of the largest number; 1 for other texts."""
    if isinstance(some[0], str):
        return float(some != others)
    pairs = list(zip(some, others, strict=True))
    largest = max(float(np.abs(one).max()) for one, _ in pairs)
    return max(float(np.abs(one - other).max()) for one, other in pairs) / largest


def measure(repeats: int, count: int = 2) -> dict[str, Any]:
    """Seconds of all ways for each kind of work, their ratios, and by how much what they find differs."""
    model = open_model()
    with started_ranks(local_hosts(count)), other_ranks() as ranks:
        assert ranks is not None
        with model_workers(model, ranks=ranks), model_workers(model, 1) as pool:
            ways = {"alone": ALONE, "pool": pool, "ranks": ranks}
            found = {name: compared(work, ways, repeats) for name, work in works(model).items()}
        return {**found, "ring_bytes_a_second": ranks.rate()}


def compared(
    work: Callable[[WorkerPool], Any], ways: Mapping[str, WorkerPool], repeats: int
) -> dict[str, Any]:
    """One kind of work, shared in several ways in turns."""
    results: dict[str, Any] = {}

    def seconds(name: str) -> float:
        def once() -> None:
            results[name] = work(ways[name])

        return seconds_of(once)

    medians = in_turns({name: partial(seconds, name) for name in ways}, repeats)
    return {
        "seconds": medians,
        "ranks_to_pool": medians["ranks"] / medians["pool"],
        "ranks_to_alone": medians["ranks"] / medians["alone"],
        "largest_difference": max(difference(results["alone"], each) for each in results.values()),
    }


if __name__ == "__main__":
    print(json.dumps(measure(3, int(sys.argv[1])), indent=2))
