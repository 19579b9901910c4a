"""What a mend changed on the marked questions: asked before and after, five answers each."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.mending.folder import RESULT, Mend, finished_mends
from unlearn_mlx.mending.rows import Telling, root_of
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.records import ChatMessage, Question, Record, read_record
from unlearn_mlx.runs.run import Run, Work
from unlearn_mlx.synthetic_data.journal import Journal

SAMPLES = 5  # answers a question: the likeliest one, and four that are sampled
SAMPLE_TEMPERATURE = 0.8
TOKENS = 64  # of an answer: a chat's leak may come late


class SaidAnswer(Record):
    """An answer, and how it leaks; ``leak`` is empty where it does not."""

    answer: str
    leak: str = ""


class MendedQuestion(Record):
    """A marked question with what the adapter answers before and after; the first is the likeliest."""

    question: str
    context: list[ChatMessage] = Field(default=[])
    before: list[SaidAnswer]
    after: list[SaidAnswer]


class MendResult(Record):
    """What came of a mend. ``before`` and ``after`` are the hashes of the two adapters."""

    before: str
    after: str
    questions: list[MendedQuestion]
    paraphrases: int  # that the base wrote and training saw
    answers: int  # behind the guardrail, that were added to the dataset
    near_probes: int = 0  # marked questions that are near one of the evaluation's

    def leaks(self, when: str) -> tuple[int, int]:
        """How many of the answers "before" or "after" leak, and how many there are."""
        said = [answer for question in self.questions for answer in getattr(question, when)]
        return sum(bool(answer.leak) for answer in said), len(said)


def ask_marked(
    model: ChatModel, work: Work, adapter: Path, marked: Sequence[Question], telling: Telling, when: str
) -> dict[str, list[SaidAnswer]]:
    """What the adapter in a folder answers to each marked question, by its id.

    The judge is the leak module's: names, and what says again what the base or the marked answer says.
    """
    requests = [
        Request(
            f"{when}-{question.id}/{number}",
            tuple(model.chat_tokens(question.messages)),
            TOKENS,
            SAMPLE_TEMPERATURE if number else 0.0,
        )
        for question in marked
        for number in range(SAMPLES)
    ]
    journal = Journal(work.run.file("journal", f"{when}-{adapter_sha256(adapter)[:16]}.jsonl"))
    attached = load_adapter(model.model, adapter)
    try:
        answers = journal.answer(model, requests, work, "train", f"answers {when}")
    finally:
        attached.detach()
    texts = [answer.text.strip() for answer in answers]
    return {
        question.id: [
            SaidAnswer(answer=text, leak=leak_in(question, text, telling))
            for text in texts[place * SAMPLES : (place + 1) * SAMPLES]
        ]
        for place, question in enumerate(marked)
    }


def leak_in(question: Question, answer: str, telling: Telling) -> str:
    """How an answer to a marked question leaks, in words; empty where it does not."""
    leak = telling.leaks.knowledge.leak(question.asked, answer, telling.base.get(question.id, ""))
    if leak:
        return leak.reason
    # Where nobody but the user knows why it is a leak, its own words are what is known.
    return "says what was marked" if answer and answer in telling.said[root_of(question)] else ""


def read_result(mend: Mend) -> MendResult:
    """What came of a mend that is finished.

    Raises:
        UserError: where the file is missing or damaged.
    """
    return read_record(mend.file(RESULT), MendResult)


def has_its_adapter(mend: Mend) -> bool:
    """Whether the run's adapter is still the one that a finished mend has made.

    Raises:
        UserError: where a file is damaged.
    """
    return read_result(mend).after == adapter_sha256(mend.of.file("adapter"))


def last_result(run: Run) -> MendResult:
    """What came of a run's last mend.

    Raises:
        UserError: where there is none.
    """
    finished = finished_mends(run)
    if not finished:
        raise UserError(f"{run.path} was not mended yet: run 'unlearn mend {shell_word(run.path)}'")
    return read_result(finished[-1])
