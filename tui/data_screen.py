"""Data: every pair of question and answer, to be searched, judged, edited and added to."""

import asyncio
import gc
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Select, Static

from tui.dialogs import Fields, PairEditor
from tui.line_input import LineInput
from tui.section import Section
from tui.table import Column, RowTable
from tui.text import shown, with_leak
from unlearn_mlx.errors import UserError
from unlearn_mlx.pipeline import reset_from
from unlearn_mlx.runs.records import Question, SampledAnswer, read_records
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.conversation import leak_in
from unlearn_mlx.synthetic_data.edits import (
    FILE,
    Edit,
    Pair,
    add_edit,
    apply_edits,
    pairs_of,
    read_edits,
    undo_edit,
)
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import Topic

ACCEPTED = "accepted"


class DataScreen(Section):
    """The open run's pairs."""

    HELP = (
        "# Data\nWhat the model is trained on, and what the filter kept out and why. **a** accepts or "
        "rejects a pair, **e** edits it, **n** adds your own. **/** searches, **f** goes to the filters by "
        "kind and by verdict.\n\nWhat you change is kept in "
        "`edits.jsonl` and holds when the answers are made anew; **t** trains on it."
    )
    section = "data"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/"),
        Binding("f", "filter", "Filter"),
        Binding("a", "judge", "Judge"),
        Binding("e,enter", "edit", "Edit", key_display="e"),
        Binding("n", "add", "Add"),
        Binding("u", "undo", "Undo"),
        Binding("t", "train", "Train"),
        Binding("escape", "table", "To the table", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[Pair] = []
        self._folded: list[str] = []  # what is searched, beside _pairs
        self._topic: Topic | None = None
        self._stamp: tuple[object, ...] = ()
        self._told = ""  # why there is nothing

    def body(self) -> ComposeResult:
        """The filters, the table, and the whole of its row."""
        with Horizontal(id="filters"):
            yield LineInput(id="search", placeholder="search in questions and answers", compact=True)
            yield Select([], id="kind", prompt="every kind", compact=True)
            yield Select([], id="reason", prompt="every verdict", compact=True)
        yield RowTable[Pair](
            [
                Column("", lambda pair: "✓" if pair.accepted else "✗", 1),
                Column("question", lambda pair: pair.question),
                Column("answer", lambda pair: pair.answer),
                Column("verdict", _verdict, 14, share=0.17),
            ],
            id="pairs",
        )
        yield Static(id="whole")
        yield Static(id="counts")

    def opened(self) -> None:
        """Read the files where they have changed."""
        self.query_one("#pairs").focus()
        self._read()

    def tick(self) -> None:
        """Read what a worker, or another app, has written meanwhile."""
        if self.entry and self._stamp and _stamp_of(self.entry) != self._stamp:
            self._read()

    @work(exclusive=True, group="read")
    async def _read(self) -> None:
        entry = self.entry
        if entry is None:
            self._stamp = ()
            self._show([], [], "A run's questions and answers are shown here: open one on Home.")
            return
        stamp = _stamp_of(entry)
        if stamp == self._stamp:
            return
        try:
            pairs, folded, topic = await asyncio.to_thread(_load, entry)
        except UserError as error:
            self._stamp = ()
            self._show([], [], str(error))
            return
        self._topic, self._stamp = topic, stamp
        gc.freeze()  # ten thousand pairs, which the collector would go through again and again
        none = "" if pairs else "No answers yet: they come with the stage 'Answers' on Run."
        self._show(pairs, folded, none)

    def _show(self, pairs: list[Pair], folded: list[str], told: str) -> None:
        self._pairs, self._folded = pairs, folded
        for id, values in (
            ("#kind", {pair.kind for pair in pairs}),
            ("#reason", {_verdict(pair) for pair in pairs}),
        ):
            select: Select[str] = self.query_one(id, Select)
            chosen = select.value
            select.set_options([(shown(one_line(value)), value) for value in sorted(values)])
            if chosen in values:
                select.value = chosen
        self._told = told
        self._filter()

    def _filter(self) -> None:
        """Show the rows that pass; the cursor stays on its own where it is among them."""
        table = self._table()
        current = table.current
        wanted = fold(self.query_one("#search", Input).value.strip())
        kind, reason = self.query_one("#kind", Select).value, self.query_one("#reason", Select).value
        rows = [
            pair
            for pair, text in zip(self._pairs, self._folded, strict=True)
            if wanted in text
            and (not isinstance(kind, str) or pair.kind == kind)
            and (not isinstance(reason, str) or _verdict(pair) == reason)
        ]
        table.show(rows, _place(rows, current, table.cursor))
        accepted = sum(pair.accepted for pair in rows)
        by_hand = sum(pair.is_by_hand for pair in self._pairs)
        hint = f" · {by_hand} by hand: t trains on them" if by_hand else ""
        self.query_one("#counts", Static).update(
            Content(f"{len(rows)} of {len(self._pairs)} pairs · {accepted} accepted{hint}")
        )

    def _table(self) -> RowTable[Pair]:
        table: RowTable[Pair] = self.query_one("#pairs", RowTable)
        return table

    def on_row_table_moved(self) -> None:
        """Show the whole of the row, with what leaks in it."""
        pair = self._table().current
        if pair is None:
            text = shown(self._told or "No pair passes the search and the filters.")
        else:
            answer = with_leak(pair.answer, leak_in(self._topic, pair.question, pair.answer))
            text = Content.assemble(
                shown(f"{pair.question}\n", "bold"), answer, shown(f"  [{_verdict(pair)}]")
            )
        self.query_one("#whole", Static).update(text)

    def on_row_table_selected(self) -> None:
        """A second click edits."""
        self.action_edit()

    def on_input_changed(self) -> None:
        """Filter as it is typed."""
        self._filter()

    def on_select_changed(self) -> None:
        """Filter."""
        self._filter()

    def on_input_submitted(self) -> None:
        """From the search to the table."""
        self.action_table()

    # Actions

    def action_search(self) -> None:
        """To the search."""
        self.query_one("#search").focus()

    def action_filter(self) -> None:
        """To the choice of a kind, and from there to that of a verdict."""
        kind = self.query_one("#kind")
        (self.query_one("#reason") if kind.has_focus else kind).focus()

    def action_table(self) -> None:
        """To the table."""
        self.query_one("#pairs").focus()

    def action_judge(self) -> None:
        """Accept what was rejected, reject what was accepted."""
        pair = self._table().current
        if pair is not None:
            self._keep(Edit(pair.question, pair.answer, not pair.accepted, (pair.question, pair.answer)))

    def action_edit(self) -> None:
        """Edit the row."""
        pair = self._table().current
        if pair is None or self.own_run() is None:
            return
        was = (pair.question, pair.answer)

        def keep(typed: Fields | None) -> None:
            if typed is not None and typed != (*was, pair.accepted):
                self._keep(Edit(*typed, was))

        self.app.push_screen(PairEditor("Edit a pair", *was, pair.accepted), keep)

    def action_add(self) -> None:
        """Add a pair of one's own."""
        if self.own_run() is None:
            return

        def keep(typed: Fields | None) -> None:
            if typed is not None:
                self._keep(Edit(*typed))

        self.app.push_screen(PairEditor("A pair of your own"), keep)

    def action_undo(self) -> None:
        """Take the last change back."""
        run = self.own_run()
        if run is None:
            return
        try:
            undone = undo_edit(run.path)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.notify(f"Taken back: {undone.question}" if undone else "Nothing was changed.", markup=False)
        self._read()

    def _keep(self, edit: Edit) -> None:
        run = self.own_run()
        if run is None:
            return
        try:
            add_edit(run.path, edit)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self._read()

    def action_train(self) -> None:
        """Make the rows anew with what was changed, and train on them."""
        run = self.own_run()
        if run is None:
            return
        if self.unlearn.is_working(run.path):
            self.notify("It is being worked on: stop it first.")
            return
        try:
            run = open_run(run.path)  # its stages as they stand now
            with run.writing():
                reset_from(run, "answers")
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.unlearn.start()
        self.run_worker(self.unlearn.action_show("run"))


def _load(entry: Entry) -> tuple[list[Pair], list[str], Topic]:
    """The pairs, what is searched in each, and the topic."""
    questions = entry.rows / "questions.jsonl"
    answers = entry.rows / "answers.jsonl"
    pairs: list[Pair] = []
    if questions.exists() and answers.exists():
        pairs = pairs_of(read_records(questions, Question), read_records(answers, SampledAnswer))
    pairs = apply_edits(pairs, read_edits(entry.rows))
    return pairs, [fold(f"{pair.question}\n{pair.answer}") for pair in pairs], entry.topic


def _stamp_of(entry: Entry) -> tuple[object, ...]:
    """What changes with the files that are shown."""
    stamp: list[object] = [entry.path]
    for name in ("questions.jsonl", "answers.jsonl", FILE):
        try:
            status = (entry.rows / name).stat()
            stamp += [status.st_mtime_ns, status.st_size]
        except OSError:
            stamp.append(None)
    return tuple(stamp)


def _verdict(pair: Pair) -> str:
    if pair.is_by_hand:
        return f"{pair.reason}: {'yes' if pair.accepted else 'no'}"
    return pair.reason or ACCEPTED


def _place(rows: list[Pair], current: Pair | None, cursor: int) -> int:
    """Where the cursor goes: to its row, or stays where it was where that row has changed."""
    if current is not None:
        for number, pair in enumerate(rows):
            if pair is current or (pair.question, pair.answer) == (current.question, current.answer):
                return number
    return cursor
