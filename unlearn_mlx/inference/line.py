"""What waits for the engine: askers take turns, each with its oldest question."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar


class Waits(Protocol):
    """Something that may be given up before its turn."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it any longer."""
        ...


Waiting = TypeVar("Waiting", bound=Waits)
Call = Callable[[Any, BaseException | None], None]  # is given the model, or why there is none


class Line(Generic[Waiting]):
    """A queue that is fair between askers. Between questions there are calls, which come first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_asker: dict[str, deque[Waiting]] = {}  # whose turn is next comes first
        self._calls: deque[Call] = deque()
        self._end: BaseException | None = None

    def put(self, asker: str, question: Waiting, again: bool = False) -> None:
        """Wait for a turn. One that waits ``again`` was there before the line was closed.

        Raises:
            BaseException: the reason for which the line was closed.
        """
        with self._changed:
            if self._end is not None and not again:
                raise self._end
            self._by_asker.setdefault(asker, deque()).append(question)
            self._changed.notify_all()

    def call(self, work: Call) -> None:
        """Have something done before the next question."""
        with self._changed:
            if self._end is not None:
                raise self._end
            self._calls.append(work)
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something to do, at most so many seconds; False once there will be nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._by_asker or self._calls or self._end, timeout)
            return bool(self._by_asker or self._calls or self._end is None)

    def take_call(self) -> Call | None:
        """The next call, if there is one."""
        with self._changed:
            return self._calls.popleft() if self._calls else None

    def take(self) -> Waiting | None:
        """The next question, if there is one."""
        with self._changed:
            if not self._by_asker:
                return None
            asker = next(iter(self._by_asker))
            questions = self._by_asker.pop(asker)
            question = questions.popleft()
            if questions:
                self._by_asker[asker] = questions
            return question

    def take_gone(self) -> list[Waiting]:
        """The questions for which nobody waits any longer."""
        with self._changed:
            gone: list[Waiting] = []
            for asker, questions in list(self._by_asker.items()):
                gone += [question for question in questions if question.is_gone]
                staying = deque(question for question in questions if not question.is_gone)
                if staying:
                    self._by_asker[asker] = staying
                else:
                    del self._by_asker[asker]
            return gone

    def __len__(self) -> int:
        with self._changed:
            return sum(len(questions) for questions in self._by_asker.values())

    @property
    def is_closed(self) -> bool:
        """Whether no more may come."""
        return self._end is not None

    def close(self, reason: BaseException) -> None:
        """Take no more questions: ``put`` raises the reason from now on."""
        with self._changed:
            self._end = self._end or reason
            self._changed.notify_all()

    def wait_for_end(self, timeout: float) -> bool:
        """Wait until the line is closed, at most so many seconds; whether it is."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._end is not None, timeout))
