"""Answers that are kept as soon as they are there, so that a killed run loses 32 of a process at most.

Requests are answered in cohorts of fixed membership, each by one process. A cohort that the journal
holds whole is taken from it, any other is generated anew: the batches, hence the bytes, are those of
an unkilled run, whatever the number of processes. The journal knows a request by what it asks, so an
edited question gets an answer of its own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request, answer_groups
from unlearn_mlx.runs.files import append_rows, read_journal

COHORT = 32


class Journal:
    """A file of completions by what was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {
            row["asked"]: Completion(row["key"], row["text"], row["token_count"], row["finished"])
            for row in read_journal(path)
            if row.keys() >= {"asked", "key", "text", "token_count", "finished"}
        }

    def complete(
        self, model: ChatModel, requests: Sequence[Request], seed: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[list[Completion]]:
        """Yield the completions of all requests, cohort by cohort, in their order.

        Raises:
            Cancelled: once ``is_cancelled`` returns True; finished cohorts are in the journal.
        """
        cohorts = [requests[start : start + COHORT] for start in range(0, len(requests), COHORT)]
        for number, cohort in enumerate(cohorts):
            if not self._holds(cohort, seed):
                missing = [each for each in cohorts[number:] if not self._holds(each, seed)]
                self._answer(model, missing[: len(model.helpers) + 1], seed, is_cancelled)
            yield [self._known[_digest(request, seed)] for request in cohort]

    def _holds(self, cohort: Sequence[Request], seed: int) -> bool:
        return all(_digest(request, seed) in self._known for request in cohort)

    def _answer(
        self,
        model: ChatModel,
        cohorts: Sequence[Sequence[Request]],
        seed: int,
        is_cancelled: Callable[[], bool],
    ) -> None:
        answered = answer_groups(model, cohorts, seed, is_cancelled)
        found = {
            _digest(request, seed): completion
            for cohort, completions in zip(cohorts, answered, strict=True)
            for request, completion in zip(cohort, completions, strict=True)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_rows(self.path, [{"asked": asked, **vars(each)} for asked, each in found.items()])
        self._known |= found


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
    )
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
