"""Rows that are decoded together, and join and leave between two tokens: continuous batching.

Rows of the base and of several adapters share one batch. A prompt is computed in pieces, between the others'
tokens, so that a long one keeps nobody waiting. Each row draws from its own source of randomness: its text
does not depend on who shares the batch, but for the last digits of a float, since products of other sizes
sum in another order; where two tokens are nearly as likely, that can choose the other one.

What goes wrong in one row ends that row. What goes wrong in a batch is computed again in smaller ones, down
to the row whose fault it is.

A GPU draws the tokens itself where no row asks for more than temperature and min-p, and has the next step
before the host reads a token. A row alone keeps mlx-lm's plain cache, whose attention has its own kernel.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from unlearn_mlx.compute.device import current_device
from unlearn_mlx.errors import Cancelled, EnvironmentCannot
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.prompts import KeptPrompts, computed
from unlearn_mlx.inference.row_adapters import RowAdapters
from unlearn_mlx.inference.rows import Row
from unlearn_mlx.inference.sampling import NO_NUMBERS, draw_tokens

MOST_ROWS = 32
FILL_TOKENS = 256  # of prompts at a time: under a second even on a small CPU
LONG_STAY = 64  # tokens after which a row makes room for those that wait


class Decoder:
    """The rows of a model. All of it happens in the thread that loaded the model.

    ``cache_bytes`` is the most that keys and values of rows may take together.
    """

    def __init__(self, model: ChatModel, cache_bytes: int, most_rows: int = MOST_ROWS) -> None:
        self.model = model
        self.adapters = RowAdapters(model.model)
        self.filling: list[Row] = []  # whose prompts are being computed, each in a cache of its own
        self.rows: list[Row] = []  # decoded together
        self.set_back: list[Row] = []  # which failed together, and are computed again
        self._known: list[Row] = []  # all of these, also while they change places
        self._cache: list[Any] = []  # of ``rows``, one entry a layer
        self._ahead: mx.array | None = None  # [rows]: tokens that a GPU has drawn and nobody has read
        self._draws_on_device = current_device().is_gpu
        self._kept = KeptPrompts(model)
        self._most_rows = self._room = most_rows
        self._good_steps = 0  # since a batch failed
        self._cache_bytes = cache_bytes
        self._bytes_per_token = _bytes_per_token(model)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.filling) + len(self.rows) + len(self.set_back)

    @property
    def has_room(self) -> bool:
        """Whether another row may join."""
        if self.set_back or self.count >= self._room:
            return False
        return self._fits([*self.filling, *self.rows], 1)

    @property
    def longest_prompt(self) -> int:
        """The most tokens of one row that there is room for."""
        return min(self.model.context, max(1, self._cache_bytes // self._bytes_per_token))

    def start(self, row: Row) -> None:
        """Take a row in, which ends at once where its adapter cannot be had."""
        with _ends_on_error(row):
            row.weights = self.adapters.weights(row.request.adapter, row.request.strength)
            self.filling.append(row)
            self._known.append(row)

    def advance(self) -> None:
        """Compute another part of the prompts, and a token for each row."""
        self._drop_gone()
        if not self._fits(self.rows):
            longest = max(self.rows, key=lambda row: row.size)
            if self._put_out(longest):
                self.set_back.append(longest)
        while self.set_back and len(self.filling) + len(self.rows) < self._room:
            if not self._fits([*self.filling, *self.rows, self.set_back[0]]):
                break
            self.filling.append(self.set_back.pop(0))
        if self.filling:
            self._fill()
        if self.rows:
            self._step()
        self._known = [row for row in self._known if not row.has_ended]
        if not self.count:
            with suppress(Exception):  # the next row meets it again, and says so
                self.adapters.use(())
        self.adapters.keep([row.weights for row in self._known])

    def make_room(self) -> Row | None:
        """Put out a row that has stayed for long, so that others have their turn; it goes on later."""
        asked = [row.asker for row in self.rows]
        stayed = [row for row in self.rows if row.stay >= LONG_STAY]
        if not stayed or self.filling or self.set_back:
            return None
        row = max(stayed, key=lambda row: (asked.count(row.asker), row.stay))
        if not self._put_out(row):
            return None
        self._known.remove(row)
        return row

    def fail(self, error: BaseException) -> None:
        """End every row with an error."""
        for row in self._known:
            row.fail(error)
        self.filling, self.rows, self.set_back, self._known = [], [], [], []
        self._cache, self._ahead = [], None

    def _fits(self, rows: Sequence[Row], more: int = 0) -> bool:
        """Whether there is room for the caches of these rows and so many more, of no great length.

        In a batch all take the room of the longest.
        """
        count = len(rows) + more
        longest = max((row.size for row in rows), default=0)
        return count <= 1 or count * (longest + FILL_TOKENS) * self._bytes_per_token <= self._cache_bytes

    def _drop_gone(self) -> None:
        for rows in (self.filling, self.set_back):
            for row in [row for row in rows if row.is_gone]:
                row.fail(Cancelled("an answer"))
                rows.remove(row)
        if gone := [row for row in self.rows if row.is_gone]:
            for row in gone:
                row.fail(Cancelled("an answer"))
            self._leave(gone)

    def _fill(self) -> None:
        """Compute another part of the prompts; those that are whole join the rows."""
        parts: list[tuple[Row, int]] = []
        left = FILL_TOKENS
        for row in self.filling:
            # Rows with one prompt wait for the first, and find it in the prompt cache.
            if left and not any(_are_twins(row, other) for other, _ in parts):
                with _ends_on_error(row):
                    self._kept.find(row)
                    parts.append((row, min(left, row.size - row.filled)))
                    left -= parts[-1][1]
        self.filling = [row for row in self.filling if not row.has_ended]
        if not parts:
            return
        try:
            found = computed(self.model, self.adapters, parts)
        except Exception as error:
            self._failed([row for row, _ in parts], error, len(parts) == 1)
            return
        whole: list[tuple[Row, mx.array]] = []
        for (row, count), logits in zip(parts, found, strict=True):
            with _ends_on_error(row):
                first, row.filled = row.filled, row.filled + count
                if row.scores_prompt:
                    row.score_prompt(self.model, logits, first)
                if row.filled == row.size:
                    # The row goes on in its own arrays: what is kept must not change with them.
                    self._kept.keep(row, partial(_alike, row))
                    whole.append((row, logits[-1:]))
                else:
                    row.on_prompt(row.filled - row.kept, row.size - row.kept)
        done = [row for row, _ in whole]
        # Those that are not yet whole take turns.
        begun = [row for row, _ in parts if row not in done]
        others = [row for row in self.filling if row not in done and row not in begun]
        self.filling = [row for row in (*others, *begun) if not row.has_ended]
        self._join(whole)

    def _join(self, whole: Sequence[tuple[Row, mx.array]]) -> None:
        """Draw the first tokens of rows whose prompts are computed, and put them to the others."""
        for row, logits in whole:
            with _ends_on_error(row):
                row.draw(self.model, np.array(logits[0].astype(mx.float32)), logits)
        joining = [row for row, _ in whole if not row.has_ended]
        if not joining:
            return
        try:
            self._settle()
            if not self.rows and len(joining) == 1:
                self._cache = joining[0].cache or []
            else:
                old = _merged([self._cache]) if len(self.rows) == 1 else self._cache
                new = _merged([row.cache or [] for row in joining])
                for entry, other in zip(old, new, strict=False):
                    entry.extend(other)
                self._cache = old or new
                mx.eval([entry.state for entry in self._cache])
        except Exception as error:
            self._failed([*self.rows, *joining], error, len(self.rows) + len(joining) == 1)
            return
        for row in joining:
            row.cache = None
        self.rows += joining

    def _step(self) -> None:
        """One more token for each row."""
        try:
            if self._draws_on_device and all(row.may_draw_on_device for row in self.rows):
                tokens = self._ahead if self._ahead is not None else self._drawn_behind(self._last_drawn())
                self._ahead = self._drawn_behind(tokens) if self._goes_on() else None
                # The only place where the host waits for a GPU.
                drawn = np.array(tokens).tolist()
            else:
                drawn, logits = [], self._logits_behind(self._last_drawn())
                scores = np.array(logits.astype(mx.float32), copy=False)
        except Exception as error:
            self._failed(self.rows, error, len(self.rows) == 1)
            return
        for place, row in enumerate(self.rows):
            with _ends_on_error(row):
                if drawn:
                    self._take(row, drawn[place])
                else:
                    row.draw(self.model, scores[place], logits[place : place + 1])
        self._good_steps += 1
        if self._good_steps >= LONG_STAY:
            self._room, self._good_steps = min(self._most_rows, 2 * self._room), 0
        if ended := [row for row in self.rows if row.has_ended]:
            self._leave(ended)

    def _last_drawn(self) -> mx.array:
        return mx.array([row.drawn[-1] for row in self.rows])

    def _goes_on(self) -> bool:
        """Whether a row may need a token behind the one that was drawn and not read."""
        return any(len(row.drawn) + 1 < row.request.max_tokens for row in self.rows)

    def _logits_behind(self, tokens: mx.array) -> mx.array:
        """Logits behind one more token of each row, [rows, vocabulary]."""
        self.adapters.use([row.weights for row in self.rows])
        places = mx.arange(len(self.rows))
        return self.model.logits_at(tokens[:, None], places, mx.zeros_like(places), self._cache)

    def _drawn_behind(self, tokens: mx.array) -> mx.array:
        """A token behind these for each row, [rows], queued on the device; negative without any scores."""
        logits = self._logits_behind(tokens)
        manners = [row.request.sampling for row in self.rows]
        drawn = draw_tokens(
            logits,
            [manner.temperature for manner in manners],
            [manner.min_p for manner in manners],
            [row.source for row in self.rows],
        ).astype(mx.int32)
        drawn = mx.where(mx.isfinite(logits.max(axis=-1)), drawn, -1)
        mx.async_eval(drawn)
        return drawn

    def _take(self, row: Row, token: int) -> None:
        if token < 0:
            raise EnvironmentCannot(NO_NUMBERS)
        row.take(self.model, token)

    def _settle(self) -> None:
        """Read what a GPU has drawn already, so that rows can change their places."""
        if self._ahead is None:
            return
        try:
            drawn, self._ahead = np.array(self._ahead).tolist(), None
        except Exception as error:
            self._failed(self.rows, error, len(self.rows) == 1)
            return
        for row, token in zip(self.rows, drawn, strict=True):
            with _ends_on_error(row):
                self._take(row, token)
        if ended := [row for row in self.rows if row.has_ended]:
            self._leave(ended)

    def _leave(self, leaving: Sequence[Row]) -> None:
        """Take rows out of the batch, and keep what was computed of them."""
        for place, row in enumerate(self.rows):
            if row in leaving:
                self._kept.keep(row, partial(self._own_cache, place))
        staying = [place for place, row in enumerate(self.rows) if row not in leaving]
        rows = [self.rows[place] for place in staying]
        try:
            if not rows:
                self._cache, self._ahead = [], None
            elif len(rows) < len(self.rows):
                kept = mx.array(staying)
                self._ahead = None if self._ahead is None else self._ahead[kept]
                if len(rows) == 1:
                    self._cache = self._own_cache(staying[0])
                else:
                    for entry in self._cache:
                        entry.filter(kept)
                mx.async_eval([entry.state for entry in self._cache])
            self.rows = rows
        except Exception as error:
            self._failed(rows, error, False)

    def _own_cache(self, place: int) -> list[Any]:
        """The cache of one row of the batch: of the tokens that were read, mostly all but the last."""
        if len(self.rows) == 1:
            return self._cache
        return [entry.extract(place) for entry in self._cache]

    def _put_out(self, row: Row) -> bool:
        """Take a row out of the batch that goes on later; False where it is not there any longer."""
        self._settle()
        if row.has_ended or row not in self.rows:
            return False
        self._leave([row])
        row.leave()
        return True

    def _failed(self, rows: Sequence[Row], error: Exception, is_alone: bool) -> None:
        """Compute rows that failed together again, in smaller batches; one that failed alone has ended."""
        if is_alone:
            rows[0].fail(error)
            self._room = self._most_rows
        else:
            self._room, self._good_steps = max(1, len(rows) // 2), 0
            for row in rows:
                row.leave()
            self.set_back += [row for row in rows if not row.has_ended]
        self.filling = [row for row in self.filling if row not in rows]
        if any(row in rows for row in self.rows) or not self.rows:
            self.rows, self._cache, self._ahead = [], [], None


def _alike(row: Row) -> list[Any]:
    """A row's cache as it is now, whatever becomes of it."""
    return [type(entry).from_state(entry.state) for entry in row.cache or []]


def _merged(caches: Sequence[list[Any]]) -> list[Any]:
    """One cache a layer for the rows of several."""
    return [entries[0].merge(entries) for entries in zip(*caches, strict=True)]


def _are_twins(row: Row, other: Row) -> bool:
    if row.size != other.size or row.weights != other.weights or row.scores_prompt:
        return False
    return row.tokens == other.tokens


@contextmanager
def _ends_on_error(row: Row) -> Iterator[None]:
    """What goes wrong with a row ends it alone."""
    try:
        yield
    except Exception as error:
        row.fail(error)


def _bytes_per_token(model: ChatModel) -> int:
    """Bytes of keys and values of one token, about."""
    cache = model.new_cache()
    mx.eval(model.model(mx.array([[0, 1]]), cache=cache))
    arrays = [array for entry in cache for array in entry.state if isinstance(array, mx.array)]
    return max(1, sum(array.nbytes for array in arrays) // 2)
