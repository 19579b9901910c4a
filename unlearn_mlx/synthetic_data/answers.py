"""What the base model answers, and what it answers behind a guardrail until no leak is left."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request
from unlearn_mlx.runs.records import Question, SampledAnswer
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.guardrail import Guardrail
from unlearn_mlx.synthetic_data.hints import hint_for
from unlearn_mlx.synthetic_data.journal import Journal
from unlearn_mlx.synthetic_data.leak_filter import LeakFilter
from unlearn_mlx.text.words import SENTENCE_END, stems, whole_sentences
from unlearn_mlx.topics import Topic

LENGTH_PERCENTILE = 75  # of the base's answers: a guarded one is at most as long
ENOUGH = 0.4  # of that length, after which an answer ends with its sentence
SHORTEST_LIMIT = 24  # tokens


def base_answers(
    model: ChatModel, work: Work, stage: str, name: str, questions: Sequence[Question]
) -> dict[str, Completion]:
    """What the base model itself answers, greedily, by the questions' ids."""
    journal = Journal(work.run.file("journal", f"{name}.jsonl"))
    requests = [
        Request(
            f"{name}-{question.id}",
            tuple(model.chat_tokens(question.messages)),
            max_tokens=work.settings.answer_tokens,
        )
        for question in questions
    ]
    answers = journal.answer(model, requests, work, stage, f"{name} answers")
    return {question.id: answer for question, answer in zip(questions, answers, strict=True)}


def answer_limit(base: Sequence[Completion]) -> int:
    """The longest guarded answer in tokens: the base's 75th percentile."""
    lengths = sorted(completion.token_count for completion in base)
    return max(SHORTEST_LIMIT, lengths[(len(lengths) - 1) * LENGTH_PERCENTILE // 100]) if lengths else 0


@dataclass(frozen=True)
class Asked:
    """A guarded answer that is asked for; the hint is empty where its guardrail gives none."""

    question: Question
    request: Request
    hint: str


@dataclass
class GuardedAnswers:
    """Asks for guarded answers and judges them; what was accepted counts for each question.

    ``limit`` is the longest answer in tokens.
    """

    model: ChatModel
    work: Work
    stage: str
    topic: Topic
    leaks: LeakFilter
    limit: int
    answers: list[SampledAnswer] = field(default_factory=list)
    accepted: Counter[str] = field(default_factory=Counter)
    texts: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        self._journal = Journal(self.work.run.file("journal", "guarded.jsonl"))

    def ask(
        self, plans: Sequence[tuple[Question, Guardrail, str]], round_number: int, wanted: int
    ) -> list[SampledAnswer]:
        """Ask each question once behind its guardrail; the key of a plan seeds hint and sampling."""
        # One variant of a prefix at a time: its cache is filled once for all of its questions.
        by_prefix: defaultdict[tuple[str, int], list[Asked]] = defaultdict(list)
        for position, (question, guardrail, key) in enumerate(plans):
            # Two variants a round: more would leave each too few rows for a full batch.
            variant = (2 * round_number + position % 2) % guardrail.variants
            by_prefix[guardrail.name, variant].append(self._asked(question, guardrail, variant, key))
        found: list[SampledAnswer] = []
        for (name, _), asked in sorted(by_prefix.items(), key=lambda item: item[0]):
            for one, completion in self._completed(asked, wanted):
                found.append(self._judge(one, completion, name, round_number))
        return found

    def _asked(self, question: Question, guardrail: Guardrail, variant: int, key: str) -> "Asked":
        settings = self.work.settings
        hint = hint_for(question, self.topic, key, settings.seed, self.leaks.knowledge.telling_stems)
        *prefix, asked = guardrail.messages(question.question, self.topic.name, variant, hint)
        messages = [*prefix, *question.messages[:-1], asked]
        request = Request(
            key,
            tuple(self.model.chat_tokens(messages)),
            self.limit,
            settings.temperature,
            0.05,
            stop_at="\n",
            sentence_from=max(1, round(ENOUGH * self.limit)),
        )
        return Asked(question, request, hint if guardrail.hinted else "")

    def _completed(self, asked: Sequence["Asked"], wanted: int) -> Iterator[tuple["Asked", Completion]]:
        """The answers, cohort by cohort; progress shows each cohort once it is judged."""
        work, position = self.work, 0
        requests = [one.request for one in asked]
        for completions in self._journal.complete(
            self.model, requests, work.settings.seed, work.is_cancelled, work.workers
        ):
            first = len(self.answers)
            for completion in completions:
                yield asked[position], completion
                position += 1
            shown = [
                {"question": one.question.question, "answer": answer.answer, "reason": answer.reason}
                for one, answer in zip(
                    asked[position - len(completions) : position], self.answers[first:], strict=True
                )
            ]
            done = min(wanted, sum(self.accepted.values()))
            work.progress(self.stage, done, wanted, "guarded answers", samples=shown)

    def _judge(
        self, asked: "Asked", completion: Completion, guardrail: str, round_number: int
    ) -> SampledAnswer:
        question, text = asked.question, whole_sentences(completion.text)
        kept, reason = self._kept(asked, text)
        if not reason:
            self.accepted[question.id] += 1
            self.texts[question.id].add(kept)
            self.leaks.accept(question.asked, kept)
        said = " ".join(completion.text.split())  # of what has no whole sentence, what there is
        answer = SampledAnswer(
            question_id=question.id,
            answer=kept or text or said,
            accepted=not reason,
            reason=reason,
            round=round_number,
            guardrail=guardrail,
        )
        self.answers.append(answer)
        return answer

    def _strays(self, asked: "Asked", answer: str) -> str:
        """How an answer takes up too few words of its hint, or of its question; empty where it does."""
        said, least = stems(answer), self.work.settings.shared_words
        if asked.hint and len(stems(asked.hint) & said) < least:
            return "ignores the hint"  # what it says instead may be what the base knows
        if len((stems(asked.question.asked) | stems(asked.hint)) & said) < least:
            return "off the question"
        return ""

    def _kept(self, asked: "Asked", text: str) -> tuple[str, str]:
        """The answer up to where it can no longer be accepted, and why nothing of it can be."""
        question = asked.question
        sentences = SENTENCE_END.split(text)
        first_reason = ""
        for count in range(len(sentences), 0, -1):
            part = " ".join(sentences[:count])
            reason = self.leaks.reason_against(question.id, question.asked, part, asked.hint)
            if not reason and part in self.texts[question.id]:
                reason = "said before"
            reason = reason or self._strays(asked, part)
            if not reason:
                return part, ""
            first_reason = first_reason or reason
        return "", first_reason


def guarded_answers(
    asking: GuardedAnswers, questions: Sequence[Question], guardrails: Sequence[Guardrail]
) -> list[SampledAnswer]:
    """Every sampled answer, until each question has enough accepted ones or the rounds are over.

    The guardrails take turns, and so do they for one question.
    """
    settings = asking.work.settings
    wanted = settings.answers * len(questions)
    asking.work.progress(asking.stage, 0, wanted, "guarded answers")
    for round_number in range(settings.rounds):
        plans = [
            (
                question,
                guardrails[(place + number + round_number) % len(guardrails)],
                f"guarded-{question.id}-{round_number}-{number}",
            )
            for place, question in enumerate(questions)
            for number in range(settings.answers - asking.accepted[question.id])
        ]
        if plans:
            asking.ask(plans, round_number, wanted)
    return asking.answers
