"""The ranks of an ``mx.distributed`` group share a run: processes on this machine or on others.

Rank 0 has the run, and the others are to it what worker processes are: they are asked, and answer, over
connections of their own, where nobody who waits keeps a core busy and a rank that is killed is noticed
between two tokens. Gradients go through mlx's group.
``mlx.launch`` starts ranks, or ``session/hosts.py``.
"""

import math
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from multiprocessing.connection import Connection
from typing import Any

from unlearn_mlx.compute.awake import kept_awake
from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.compute.meeting import (
    KEPT,
    Attendant,
    RankLost,
    attend,
    has_ended,
    meet,
    place_in_group,
)
from unlearn_mlx.compute.memory import wired
from unlearn_mlx.compute.worker import BROKEN, MODEL, Worker, WorkerLost, serve
from unlearn_mlx.compute.workers import Arrays, Shapes, WorkerPool, found_by
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.text.printable import one_line

LOOKS_APART = 0.5  # seconds between two looks whether the others are there
RATE_BYTES, RATE_TIMES = 2**26, 4  # that its rate is measured with
GONE = f"rank 0 is gone: {KEPT}"


class Rank(Worker):
    """A rank other than 0, as ``name`` says in messages."""

    def __init__(self, attendant: Attendant) -> None:
        super().__init__(attendant.connection)
        self.name = attendant.name

    @property
    def is_there(self) -> bool:
        """Whether its connection stands."""
        return not has_ended(self._connection)

    def load(self, loader: Callable[..., Any], given: Sequence[Any]) -> None:
        """Have it call ``loader(*given)``, a module's function, and keep what that returns."""
        self._connection.send((loader, given))

    def dismiss(self) -> None:
        """Tell it that all is done."""
        with suppress(OSError):
            self._connection.send_bytes(b"")


class Ranks(WorkerPool):
    """All other ranks. One that is lost ends the run, since mlx's group cannot grow smaller."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        super().__init__(lambda: None, (), 0)
        self.ranks, self.workers = list(ranks), list(ranks)

    def load(self, loader: Callable[..., Any], given: Sequence[Any]) -> None:
        """Have every rank call ``loader(*given)``, and wait until all have.

        Raises:
            RankLost: where one cannot, for the reason that it says.
        """
        for rank in self.ranks:
            try:
                rank.load(loader, given)
            except OSError:
                self._lose(rank, WorkerLost(BROKEN))
        for rank in self.ranks:
            try:
                rank.ask(_nothing, MODEL, ())
                rank.result()
            except WorkerLost as error:
                self.close()
                raise RankLost(f"{rank.name} cannot take part: {error}; {KEPT}") from None

    def sum(
        self,
        function: Callable[..., Generator[Arrays, None, None]],
        kept: Any,
        parts: Sequence[Any],
        common: tuple[Any, ...],
        shapes: Shapes,
        is_cancelled: Callable[[], bool] = lambda: False,
        name: str = MODEL,
    ) -> Arrays:
        """The same, where mlx's group brings all arrays together.

        It could add them as well (``all_sum``), but in an order that depends on how many ranks there are: a
        run that went on with fewer would end with another adapter.

        Raises:
            Cancelled: between two parts, once ``is_cancelled`` returns True.
            RankLost: where a rank is gone.
        """
        count = self.count + 1
        most = math.ceil(len(parts) / count)
        shares = [(function, parts[first::count], most, common, shapes) for first in range(count)]
        try:
            for rank, share in zip(self.ranks, shares[1:], strict=True):
                try:
                    rank.ask(_take_part_in_gathering, name, share)
                except WorkerLost as error:
                    self._lose(rank, error)
            own = _own(kept, *shares[0], self.watching(is_cancelled))
            found = self._gathered(own, is_cancelled)
        except BaseException:
            self.close()  # nobody will fetch what they are computing
            raise
        rows = (found[number % count, number // count] for number in range(len(parts)))
        return _cut(reduce(operator.add, rows), shapes)

    def _gathered(self, own: Any, is_cancelled: Callable[[], bool]) -> Any:
        found, broken = None, ""
        try:
            found = _gathered(own)
        except RuntimeError as error:  # a rank has left the group: it failed, or was killed
            broken = one_line(str(error))[:80]
        lost: dict[Rank, WorkerLost] = {}
        for rank in self.ranks:
            try:
                rank.result(is_cancelled)
            except WorkerLost as error:
                lost[rank] = error
        # Where one was killed, all that the others know is a broken group.
        for rank in sorted(lost, key=lambda rank: str(lost[rank]) != BROKEN):
            self._lose(rank, lost[rank])
        if found is None:
            raise RankLost(f"the ranks' group is broken ({broken}): {KEPT}")
        return found

    def rate(self) -> float:
        """Bytes a second that each rank is brought of another's, at their best of a few times."""
        seconds = []
        for _ in range(RATE_TIMES):
            began = time.perf_counter()
            self.sum(_ones, None, [RATE_BYTES // 4] * (self.count + 1), (), {"": (RATE_BYTES // 4,)})
            seconds.append(time.perf_counter() - began)
        return self.count * RATE_BYTES / min(seconds)

    def watching(self, is_cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """``is_cancelled``, and on the way whether every rank is there.

        That function raises RankLost where one is not.
        """
        last = time.monotonic()

        def watched() -> bool:
            nonlocal last
            if time.monotonic() - last >= LOOKS_APART:
                last = time.monotonic()
                for rank in self.workers:
                    if isinstance(rank, Rank) and not rank.is_there:
                        self._lose(rank, WorkerLost(BROKEN))
            return is_cancelled()

        return watched

    def _lose(self, worker: Worker, error: WorkerLost) -> None:
        name = worker.name if isinstance(worker, Rank) else "a rank"
        self.close()
        raise RankLost(f"{name} was lost ({error}): {KEPT}") from None


def _nothing(kept: Any) -> None:
    """What is asked only to hear whether a rank can compute."""


def _ones(kept: Any, counts: Sequence[int]) -> Generator[Arrays, None, None]:
    import numpy as np

    for count in counts:
        yield {"": np.ones(count, np.float32)}


def _take_part_in_gathering(kept: Any, *share: Any) -> None:
    _gathered(_own(kept, *share))


def _own(
    kept: Any,
    function: Callable[..., Generator[Arrays, None, None]],
    parts: Sequence[Any],
    most: int,
    common: tuple[Any, ...],
    shapes: Shapes,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Any:
    """What this rank finds, [most, numbers of a part]: ``most`` is of the parts that a rank has."""
    import numpy as np

    own = np.zeros((most, sum(map(math.prod, shapes.values()))), np.float32)
    for row, found in zip(own, found_by(function(kept, parts, *common), is_cancelled), strict=False):
        row[:] = np.concatenate([found[name].ravel() for name in shapes])
    return own


def _gathered(own: Any) -> Any:
    """What all ranks have found, [ranks, most, numbers of a part]; it is there once all have called this."""
    import mlx.core as mx
    import numpy as np

    return np.array(mx.distributed.all_gather(mx.array(own))).reshape(-1, *own.shape)


def _cut(numbers: Any, shapes: Shapes) -> Arrays:
    """The arrays whose numbers stand one behind the other."""
    cut, first = {}, 0
    for name, shape in shapes.items():
        cut[name] = numbers[first : first + math.prod(shape)].reshape(shape)
        first += math.prod(shape)
    return cut


@contextmanager
def other_ranks(is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[Ranks | None]:
    """The ranks that share this process's work, for as long as it lasts; None where it stands alone.

    Raises:
        Cancelled: once ``is_cancelled`` returns True while they are waited for.
        RankLost: where one does not come in time, or has other versions.
    """
    place = place_in_group()
    if place is None:
        yield None
        return
    ranks = Ranks([Rank(attendant) for attendant in meet(place, is_cancelled)])
    try:
        yield ranks
        for rank in ranks.ranks:
            rank.dismiss()
    finally:
        ranks.close()


def take_part() -> None:
    """Be a rank other than 0: compute what rank 0 asks until it is done.

    Raises:
        EnvironmentCannot: where this rank is refused, or rank 0 is gone.
    """
    prepare_cpu()
    place = place_in_group()
    if place is None or place.rank == 0:
        raise EnvironmentCannot("this process is no rank of a group: start it by mlx.launch, or by '--hosts'")
    connection = attend(place)
    is_over = threading.Event()
    threading.Thread(target=_end_with, args=(connection, is_over), daemon=True).start()
    try:
        with kept_awake(), wired():
            failure = serve(connection, ends_on_failure=True)
    except (EOFError, OSError):
        raise RankLost(GONE) from None
    finally:
        is_over.set()
    if failure:
        raise RankLost(f"rank {place.rank} has ended: {failure}")


def _end_with(connection: Connection, is_over: threading.Event) -> None:
    """End this process where rank 0 is gone, whatever it computes: nobody will ask for it."""
    while not has_ended(connection):
        time.sleep(LOOKS_APART)
    if is_over.wait(LOOKS_APART):  # it has only heard so itself
        return
    print(f"unlearn: {GONE}", file=sys.stderr, flush=True)
    os._exit(RankLost.exit_code)


def main() -> int:
    """A rank's entry point."""
    try:
        take_part()
    except EnvironmentCannot as error:
        print(f"unlearn: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
