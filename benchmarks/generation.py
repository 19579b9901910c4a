"""480 guarded answers: our engine against mlx-lm's ``batch_generate`` at its best batch size.

Both are greedy, get the same prompts and length limit, and must write the same text. The peer's products
have one thread or one a core, whichever is faster; ours have one in each of our processes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from mlx_lm import batch_generate

from benchmarks.side_by_side import (
    in_turns,
    open_model,
    peak_bytes_of,
    product_threads,
    seconds_of,
    shipped_questions,
)
from unlearn_mlx.compute.cpu_blas import core_count
from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import model_workers
from unlearn_mlx.inference.shared_prefix import common_prefix
from unlearn_mlx.synthetic_data.guardrail import DEFAULT
from unlearn_mlx.synthetic_data.hints import HINTS

ANSWERS = 480
ANSWER_TOKENS = 32
PEER_BATCHES = (16, 32, 64, 128)  # each answers as many as the largest, to find the best


def guarded_prompts(model: ChatModel, count: int, topic: str = "Harry Potter") -> list[tuple[int, ...]]:
    """Prompts of guarded answers that share one prefix."""
    questions = shipped_questions()
    prompts = []
    for number in range(count):
        question = questions[number % len(questions)]
        # Another hint each time round, so that no two prompts are equal: equal ones are computed once.
        hint = HINTS["things"][number // len(questions) % len(HINTS["things"])]
        prompts.append(tuple(model.chat_tokens(DEFAULT.messages(question, topic, 0, hint))))
    return prompts


def measure(
    repeats: int, answers: int = ANSWERS, peer_batches: Sequence[int] = PEER_BATCHES
) -> dict[str, Any]:
    """Seconds of both, their ratio, and how many texts are equal."""
    model = open_model()
    with model_workers(model) as workers:
        return _measured(model, workers, repeats, answers, peer_batches)


def _measured(
    model: ChatModel, workers: WorkerPool, repeats: int, answers: int, peer_batches: Sequence[int]
) -> dict[str, Any]:
    prompts = guarded_prompts(model, answers)
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        requests = [Request(str(n), prompt, ANSWER_TOKENS) for n, prompt in enumerate(prompts)]
        texts["ours"] = [answer.text for answer in generate(model, requests, 0, workers=workers)]

    def peer(batch: int, threads: int, count: int = answers) -> None:
        with product_threads(threads):
            texts["peer"] = batch_generate(
                model.model,
                model.tokenizer,
                [list(prompt) for prompt in prompts[:count]],
                max_tokens=ANSWER_TOKENS,
                completion_batch_size=batch,
                prefill_batch_size=min(batch, 8),  # its own default; more only adds memory here
            ).texts

    cores, count = core_count(), max(peer_batches)
    tried = {(batch, cores): seconds_of(partial(peer, batch, cores, count)) for batch in peer_batches}
    batch, _ = min(tried, key=lambda way: tried[way])
    tried[batch, 1] = seconds_of(partial(peer, batch, 1, count))
    best = min(tried, key=lambda way: tried[way])
    seconds = in_turns(
        {"ours": lambda: seconds_of(ours), "batch_generate": lambda: seconds_of(lambda: peer(*best))}, repeats
    )
    same = sum(a.strip() == b.strip() for a, b in zip(texts["ours"], texts["peer"], strict=True))
    memory = {
        "ours": peak_bytes_of(ours, workers),
        "batch_generate": peak_bytes_of(lambda: peer(*best, 2 * best[0])),
    }
    return {
        "answers": answers,
        "shared_prefix_tokens": len(common_prefix(prompts)),
        "peer_best": {"batch": best[0], "threads": best[1]},
        "peer_seconds_by_batch_and_threads": {
            f"{batch}, {threads}": round(value, 2) for (batch, threads), value in tried.items()
        },
        "seconds": seconds,
        "times_faster": seconds["batch_generate"] / seconds["ours"],
        "same_texts": same,
        "peak_bytes": memory,
    }
