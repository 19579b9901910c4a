"""The base model asks a marked question in other words."""

from collections.abc import Sequence

from unlearn_mlx.inference.chat_model import ChatModel, Message
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.leakage.names import named
from unlearn_mlx.runs.records import Question
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.journal import Journal
from unlearn_mlx.synthetic_data.questions import LONGEST_QUESTION, form_reason
from unlearn_mlx.text.similarity import Nearness
from unlearn_mlx.text.words import fold, stems
from unlearn_mlx.topics import Topic

KEPT = 8  # paraphrases of a marked question
TRIES = 4  # with each beginning

# How the writer is shown what to do; none of it belongs to a shipped topic.
_EXAMPLES = (
    ("When did the Titanic sink?", "In which year did the Titanic go down?"),
    ("Who painted the Mona Lisa?", "Which artist is the Mona Lisa by?"),
    ("Tell me about Tokyo.", "What is there to know about Tokyo?"),
    ("Why do volcanoes erupt?", "What makes volcanoes erupt?"),
)
# Put in the writer's mouth, so that it says the question in other forms; with the signs that may end it.
_OPENINGS = (
    ("", "?\n"),
    ("What", "?\n"),
    ("Which", "?\n"),
    ("Can you tell me", "?\n"),
    ("Do you know", "?\n"),
    ("I would like to know", ".?\n"),
    ("Please tell me", ".?\n"),
    ("In a few words,", "?\n"),
)


def paraphrase_messages(question: str) -> list[Message]:
    """The conversation whose answer is the question in other words."""
    messages = [{"role": "system", "content": "You ask the same question again in other words."}]
    for asked, again in _EXAMPLES:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": again}]
    return [*messages, {"role": "user", "content": question}]


def paraphrases(
    model: ChatModel, work: Work, marked: Sequence[Question], probes: Sequence[str]
) -> list[Question]:
    """Up to ``KEPT`` questions for each of ``marked``, those nearest to it, and none near a probe."""
    journal = Journal(work.run.file("journal", "paraphrases.jsonl"))
    plans = [
        (question, opening, ends, number)
        for question in marked
        for opening, ends in _OPENINGS
        for number in range(TRIES)
    ]
    requests = [
        Request(
            f"paraphrase-{question.id}-{place}",
            tuple(model.chat_tokens(paraphrase_messages(question.question), opening)),
            max_tokens=LONGEST_QUESTION,
            temperature=0.9,
            min_p=0.08,
            stop_at=ends,
        )
        for place, (question, opening, ends, _) in enumerate(plans)
    ]
    found: dict[str, list[str]] = {question.id: [] for question in marked}
    asked_of_probes = Nearness(probes)
    done = 0
    work.progress("questions", 0, len(plans), "paraphrases")
    for completions in journal.complete(model, requests, work.settings.seed, work.is_cancelled, work.workers):
        fresh = []
        for completion in completions:
            question, opening, ends, _ = plans[done]
            done += 1
            text = " ".join((opening + completion.text).split())
            if form_reason(text, ends) or not asks_the_same(work.run.topic, question, text):
                continue
            if _is_new(text, question, found[question.id]) and not asked_of_probes.holds(text):
                found[question.id].append(text)
                fresh.append(text)
        work.progress("questions", done, len(plans), "paraphrases", samples=fresh)
    return [
        Question(
            id=f"{question.id}-{number:02d}",
            question=text,
            kind="paraphrase",
            subject=question.subject,
            context=question.context,
        )
        for question in marked
        for number, text in enumerate(_nearest(question, found[question.id])[:KEPT], start=1)
    ]


def asks_the_same(topic: Topic, question: Question, text: str) -> bool:
    """Whether a text is about what the question is about, and gives away no more of the topic.

    It says one of the topic's names that the question says, or where that has none, a word of it.
    """
    if named(topic, question.asked, text):
        return False
    names = topic.mentions(question.question)
    return bool(names & topic.mentions(text)) if names else bool(stems(question.question) & stems(text))


def _is_new(text: str, question: Question, others: Sequence[str]) -> bool:
    return fold(text) not in {fold(other) for other in (question.question, *others)}


def _nearest(question: Question, texts: Sequence[str]) -> list[str]:
    """The texts in the order of how much of the question's words they share."""
    own = stems(question.question)
    return sorted(texts, key=lambda text: -len(own & stems(text)) / max(1, len(own | stems(text))))
