"""Many answers at once.

What all prompts start with is computed once and kept once for all of them. Each request
draws its randomness from its own key, so its answer does not depend on when its turn comes.
On a CPU tokens are drawn on the host: there the likely ones are found without sorting or exponentiating
the whole vocabulary, which costs mlx-lm's BatchGenerator more than the model itself. A GPU draws them itself,
and has the next step before the host reads a token, so that neither waits for the other.
What is asked while others are being answered is decoder.py's.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from unlearn_mlx.compute.batch_size import BATCH_SIZES, decode_batch_size
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.workers import ALONE, WorkerPool, part_count
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.adapters import LoraLayers, lora_layers, with_lora_layers
from unlearn_mlx.inference.batch import Batch
from unlearn_mlx.inference.chat_model import ChatModel

TWO_FROM = 12  # requests; fewer are soon answered by one process
Told = Callable[[int], None]  # hears how many requests are answered so far
MOST_A_PART = 128  # requests; on a CPU a small batch takes as long as a large one


@dataclass(frozen=True)
class Request:
    """One answer to be generated. ``key`` names it and seeds its sampling."""

    key: str
    tokens: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    min_p: float = 0.05  # tokens less likely than this share of the likeliest are never drawn
    stop_at: str = ""  # generation ends with the first token that contains one of these characters
    sentence_from: int = 0  # after so many tokens the answer ends with its sentence; 0 lets it go on


@dataclass(frozen=True)
class Completion:
    """The answer to a request. ``finished`` is False where the length limit cut it off."""

    key: str
    text: str
    token_count: int
    finished: bool


def generate(
    model: ChatModel,
    requests: Sequence[Request],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    workers: WorkerPool | None = None,
    told: Told = lambda done: None,
) -> list[Completion]:
    """Answer all requests, in their order; ``workers`` answer some of them.

    ``told`` is called each time that there are more tokens.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    if current_device().is_gpu and not (workers and workers.count):
        return _answer(model, requests, seed, is_cancelled, told)
    order = _longest_first(requests)
    count = part_count(len(requests), MOST_A_PART, TWO_FROM)
    # Every part has some of the long ones and some of the short ones, and all samples of a prompt together.
    places = {tokens: place for place, tokens in enumerate(dict.fromkeys(requests[i].tokens for i in order))}
    shared = [[i for i in order if places[requests[i].tokens] % count == part] for part in range(count)]
    dealt = [part for part in shared if part]
    answered = answer_groups(
        model, [[requests[i] for i in part] for part in dealt], seed, is_cancelled, workers, told
    )
    completions = {
        i: completion
        for part, found in zip(dealt, answered, strict=True)
        for i, completion in zip(part, found, strict=True)
    }
    return [completions[i] for i in range(len(requests))]


def answer_groups(
    model: ChatModel,
    groups: Sequence[Sequence[Request]],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    workers: WorkerPool | None = None,
    told: Told = lambda done: None,
) -> list[list[Completion]]:
    """Answer groups of requests, each in one process: what is said does not depend on how many there are.

    ``told`` hears how many are answered, the workers taken to be as far as this process.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    workers = workers or ALONE
    of_all, own = sum(map(len, groups)), sum(map(len, groups[:: workers.count + 1]))
    common = (seed, lora_layers(model.model))

    def told_of_all(done: int) -> None:
        told(done * of_all // max(1, own) if done < own else of_all)

    return workers.map(answer_parts, model, groups, common, is_cancelled, here=(is_cancelled, told_of_all))


def answer_parts(
    model: ChatModel,
    groups: Sequence[Sequence[Request]],
    seed: int,
    layers: LoraLayers,
    is_cancelled: Callable[[], bool] = lambda: False,
    told: Told = lambda done: None,
) -> Generator[list[Completion], None, None]:
    """Answer each group of requests by itself in this process, with these layers adapted."""
    before = 0
    with with_lora_layers(model.model, layers):
        for group in groups:
            yield _answer(model, group, seed, is_cancelled, counted_from(before, told))
            before += len(group)


def counted_from(before: int, told: Told) -> Told:
    """``told`` for requests that come behind so many others."""
    return lambda done: told(before + done)


def _answer(
    model: ChatModel, requests: Sequence[Request], seed: int, is_cancelled: Callable[[], bool], told: Told
) -> list[Completion]:
    tokens: list[list[int]] = [[] for _ in requests]
    finished = [False] * len(requests)
    for index, token in decode(model, requests, seed, is_cancelled, told):
        if token is None:
            finished[index] = True
        else:
            tokens[index].append(token)
    return [
        Completion(request.key, model.text_of(ids), len(ids), done)
        for request, ids, done in zip(requests, tokens, finished, strict=True)
    ]


def decode(
    model: ChatModel,
    requests: Sequence[Request],
    seed: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    told: Told = lambda done: None,
) -> Iterator[tuple[int, int | None]]:
    """Yield (index of the request, token) as tokens come; (index, None) where an answer ends itself.

    ``told`` hears between two tokens how many requests are answered.

    Raises:
        Cancelled: between two tokens, once ``is_cancelled`` returns True.
    """
    if not requests:
        return
    batch = Batch(model, requests, seed)
    # The longest first: what is decoded last is then short, and few steps run half empty.
    waiting = deque(_longest_first(requests))
    batch_size = decode_batch_size(model) if len(requests) > BATCH_SIZES[0] else BATCH_SIZES[0]
    while waiting or batch.live_count:
        if is_cancelled():
            raise Cancelled("generation")
        told(len(requests) - len(waiting) - batch.live_count)
        # Half a batch at a time: prompts computed one by one would each read all the weights.
        if waiting and batch.live_count <= batch_size // 2:
            batch.drop_finished()
            chosen = [waiting.popleft() for _ in range(min(batch_size - batch.live_count, len(waiting)))]
            yield from batch.start(chosen)
        else:
            if batch.live_count <= 0.75 * len(batch.rows):
                batch.drop_finished()
            yield from batch.step()


def _longest_first(requests: Sequence[Request]) -> list[int]:
    return sorted(range(len(requests)), key=lambda i: (-requests[i].max_tokens, -len(requests[i].tokens), i))
