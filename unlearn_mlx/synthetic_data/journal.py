"""Answers that are kept as soon as they are there, so that a killed run loses at most one cohort.

Requests are answered in cohorts of fixed membership. A cohort that the journal holds whole is taken
from it, any other is generated anew: the batches, hence the bytes, are those of an unkilled run.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request, generate
from unlearn_mlx.runs.files import append_rows
from unlearn_mlx.runs.records import Record, read_known

COHORT = 256


class CompletionRow(Record):
    """A completion as its line holds it."""

    key: str
    text: str
    token_count: int
    finished: bool


class Journal:
    """A file of completions by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.completions = {
            row.key: Completion(row.key, row.text, row.token_count, row.finished)
            for row in read_known(path, CompletionRow)
        }

    def complete(
        self, model: ChatModel, requests: Sequence[Request], seed: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[list[Completion]]:
        """Yield the completions of all requests, cohort by cohort, in their order."""
        for start in range(0, len(requests), COHORT):
            cohort = requests[start : start + COHORT]
            if not all(request.key in self.completions for request in cohort):
                completions = generate(model, cohort, seed, is_cancelled)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                append_rows(self.path, [vars(completion) for completion in completions])
                self.completions.update({completion.key: completion for completion in completions})
            yield [self.completions[request.key] for request in cohort]

    def remove(self) -> None:
        """Delete the file: its stage's own files hold everything now."""
        self.path.unlink(missing_ok=True)
