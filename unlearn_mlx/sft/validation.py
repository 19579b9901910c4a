"""How an adapter does on rows that it is not trained on: which checkpoint serves best is decided here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.leakage.names import named, names_of_base
from unlearn_mlx.runs.records import TrainingRow
from unlearn_mlx.sft.batches import ReferenceTopK, Row, make_batch
from unlearn_mlx.sft.loss import Weights, loss_parts
from unlearn_mlx.topics import Topic

ROWS_AT_ONCE = 16
ANSWER_TOKENS = 30


@dataclass(frozen=True)
class ValidationMetrics:
    """An adapter's leak rate on held-out questions, its loss there, and its distance from the base."""

    leak_rate: float
    forget_loss: float  # nats a token of held-out guarded answers
    retain_kl: float  # nats a token of held-out retain rows

    @property
    def score(self) -> float:
        """Less is better: leaks and distance count; the loss decides where both are alike."""
        return self.leak_rate + self.retain_kl + 0.01 * self.forget_loss


class Validation:
    """Held-out rows of a run, and what is known of them."""

    def __init__(
        self,
        topic: Topic,
        entries: Sequence[TrainingRow],
        rows: Sequence[Row],
        references: Sequence[ReferenceTopK | None],
        prefix: Sequence[int],
    ) -> None:
        self.topic, self.rows, self.references, self.prefix = topic, rows, references, prefix
        # Each question once, however many answers were drawn for it.
        self.questions = {
            tuple((message.role, message.content) for message in entry.messages[:-1]): entry.base_answer
            for entry in entries
            if entry.part == "forget"
        }

    def measure(
        self,
        model: ChatModel,
        seed: int,
        workers: WorkerPool | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> ValidationMetrics:
        """Measure the model as it is now.

        Raises:
            Cancelled: once ``is_cancelled`` returns True.
        """
        asked = ["\n".join(content for role, content in told if role == "user") for told in self.questions]
        requests = [
            Request(
                question,
                tuple(model.chat_tokens([{"role": role, "content": content} for role, content in told])),
                ANSWER_TOKENS,
            )
            for question, told in zip(asked, self.questions, strict=True)
        ]
        answers = generate(model, requests, seed, is_cancelled, workers)
        leaks = [
            bool(named(self.topic, question, answer.text) or names_of_base(question, base, answer.text))
            for question, base, answer in zip(asked, self.questions.values(), answers, strict=True)
        ]
        forget, divergence, forget_weight, retain_weight = 0.0, 0.0, 0.0, 0.0
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i].tokens))
        for start in range(0, len(order), ROWS_AT_ONCE):
            if is_cancelled():
                raise Cancelled("validation")
            chosen = order[start : start + ROWS_AT_ONCE]
            batch = make_batch(
                [self.rows[i] for i in chosen], [self.references[i] for i in chosen], self.prefix
            )
            _, (cross_entropy, kl, _) = loss_parts(model.model, batch, Weights())
            weights = _number(batch.forget.sum()), _number(batch.retain.sum())
            forget += _number(cross_entropy) * weights[0]
            divergence += _number(kl) * weights[1]
            forget_weight += weights[0]
            retain_weight += weights[1]
        return ValidationMetrics(
            sum(leaks) / max(1, len(leaks)),
            forget / max(1.0, forget_weight),
            divergence / max(1.0, retain_weight),
        )


def _number(value: mx.array) -> float:
    return float(np.array(value))
