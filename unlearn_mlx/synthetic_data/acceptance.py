"""How many of the sampled answers may be trained on, and what the others were rejected for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from unlearn_mlx.runs.records import AcceptanceEvent, Question, SampledAnswer

REASONS_SHOWN = 5


def acceptance(questions: Iterable[Question], answers: Sequence[SampledAnswer]) -> dict[str, Any]:
    """Share of accepted samples overall and by kind of question, and rejects by reason."""
    kinds = {question.id: question.kind for question in questions}
    sampled, accepted = Counter[str](), Counter[str]()
    for answer in answers:
        sampled[kinds[answer.question_id]] += 1
        accepted[kinds[answer.question_id]] += answer.accepted
    reasons = Counter(answer.reason for answer in answers if answer.reason)
    return {
        "rate": sum(accepted.values()) / max(1, len(answers)),
        "by_kind": {kind: accepted[kind] / count for kind, count in sorted(sampled.items())},
        "by_reason": dict(reasons.most_common()),
    }


def acceptance_sentences(event: AcceptanceEvent) -> list[str]:
    """An acceptance event in two lines: the rate with the reasons, and the kinds, the worst first."""
    reasons = list(event.by_reason.items())[:REASONS_SHOWN]
    rejected = ", ".join(f"{count} {reason}" for reason, count in reasons)
    sentences = [f"{event.rate:.0%} of the guarded answers accepted; rejected: {rejected or 'none'}"]
    kinds = sorted(event.by_kind.items(), key=lambda kind: (kind[1], kind[0]))
    if kinds:
        sentences.append("accepted by kind: " + ", ".join(f"{kind} {share:.0%}" for kind, share in kinds))
    return sentences
