"""Answers that are kept as soon as they are there, so that a killed run loses one cohort of a process.

Requests are answered in cohorts of fixed membership, each by one process. A cohort that the journal
holds whole is taken from it, any other is generated anew: the batches, hence the bytes, are those of
an unkilled run, whatever the number of processes. The journal knows a request by what it asks, so an
edited question gets an answer of its own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from unlearn_mlx.compute.workers import WorkerPool, part_count
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request, Told, answer_groups, counted_from
from unlearn_mlx.runs.files import append_checked
from unlearn_mlx.runs.records import Record, read_known
from unlearn_mlx.runs.run import Work, now_and_then

# Half as many would lose less and take 40 % longer on a CPU, where a small batch costs what a large one does.
COHORT = 64  # requests at most
TWO_FROM = 24  # requests; fewer are soon answered by one process


class CompletionRow(Record):
    """A completion as its line holds it; ``asked`` names all that it depends on."""

    asked: str
    key: str
    text: str
    token_count: int
    finished: bool


class Journal:
    """A file of completions by what was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {
            row.asked: Completion(row.key, row.text, row.token_count, row.finished)
            for row in read_known(path, CompletionRow)
        }

    def complete(
        self,
        model: ChatModel,
        requests: Sequence[Request],
        seed: int,
        is_cancelled: Callable[[], bool],
        workers: WorkerPool | None = None,
        told: Told = lambda done: None,
    ) -> Iterator[list[Completion]]:
        """Yield the completions of all requests, cohort by cohort, in their order.

        ``told`` hears meanwhile how many there are.

        Raises:
            Cancelled: once ``is_cancelled`` returns True; finished cohorts are in the journal.
        """
        cohorts, before = _cohorts(requests), 0
        for number, cohort in enumerate(cohorts):
            if not self._holds(cohort, seed):
                missing = [each for each in cohorts[number:] if not self._holds(each, seed)]
                together = missing[: (workers.count if workers else 0) + 1]
                self._answer(model, together, seed, is_cancelled, workers, counted_from(before, told))
            before += len(cohort)
            yield [self._known[_digest(request, seed)] for request in cohort]

    def answer(
        self, model: ChatModel, requests: Sequence[Request], work: Work, stage: str, unit: str
    ) -> list[Completion]:
        """The completions of all requests, in their order; the run is told meanwhile how many there are.

        Raises:
            Cancelled: once the work is; finished cohorts are in the journal.
        """

        def tell(done: int) -> None:
            work.progress(stage, done, len(requests), unit)

        found: list[Completion] = []
        tell(0)
        for completions in self.complete(
            model, requests, work.settings.seed, work.is_cancelled, work.workers, now_and_then(tell)
        ):
            found += completions
            tell(len(found))
        return found

    def _holds(self, cohort: Sequence[Request], seed: int) -> bool:
        return all(_digest(request, seed) in self._known for request in cohort)

    def _answer(
        self,
        model: ChatModel,
        cohorts: Sequence[Sequence[Request]],
        seed: int,
        is_cancelled: Callable[[], bool],
        workers: WorkerPool | None,
        told: Told,
    ) -> None:
        answered = answer_groups(model, cohorts, seed, is_cancelled, workers, told)
        found = {
            _digest(request, seed): completion
            for cohort, completions in zip(cohorts, answered, strict=True)
            for request, completion in zip(cohort, completions, strict=True)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_checked(self.path, [{"asked": asked, **vars(each)} for asked, each in found.items()])
        self._known |= found


def _cohorts(requests: Sequence[Request]) -> list[Sequence[Request]]:
    """Parts of about the same size."""
    count = part_count(len(requests), COHORT, TWO_FROM)
    ends = [len(requests) * number // count for number in range(count + 1)]
    return [requests[start:end] for start, end in pairwise(ends) if end > start]


def _digest(request: Request, seed: int) -> str:
    """Names a request by all that its answer depends on."""
    asked = (
        seed,
        request.key,
        request.tokens,
        request.max_tokens,
        request.temperature,
        request.min_p,
        request.stop_at,
        request.sentence_from,
    )
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
