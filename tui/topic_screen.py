"""Topic: what it is called, what belongs to it and what must stay, with the questions each touches."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from tui.dialogs import Choice, Line
from tui.section import Section
from tui.table import Column, RowTable
from tui.text import shown
from unlearn_mlx.errors import UserError
from unlearn_mlx.pipeline import reset_from
from unlearn_mlx.runs.records import Question, read_records
from unlearn_mlx.runs.run import Run, open_run, save_topic
from unlearn_mlx.synthetic_data.coverage import questions_by_name
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import ENTITY_KINDS, Topic

TOPIC, ALIAS, STAYS = "topic", "alias", "must stay"
KINDS = {ALIAS: "alias: another name of the topic", **{kind: kind for kind in ENTITY_KINDS}, STAYS: STAYS}


@dataclass(frozen=True)
class Name:
    """A name of the topic or near it: its kind, other spellings, and the questions that it touches."""

    kind: str
    name: str
    spellings: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As it is edited: the name and its other spellings."""
        return ", ".join((self.name, *self.spellings))


class TopicScreen(Section):
    """The open run's topic file."""

    HELP = (
        "# Topic\nEvery name here gives the topic away in an answer; what *must stay* gets questions of "
        "its own, which the model goes on to answer as it did.\n\nChanges lie in `topic.toml`. They hold "
        "for what is made from now on: **t** makes the questions anew and trains on them."
    )
    section = "topic"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "add", "Add"),
        Binding("e,enter", "edit", "Edit", key_display="e"),
        Binding("d", "delete", "Delete"),
        Binding("u", "undo", "Undo"),
        Binding("t", "again", "Make anew"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[Path, Topic]] = []  # what stood in a file before each change

    def body(self) -> ComposeResult:
        """The names, and beside them the questions of the one under the cursor."""
        with Horizontal():
            yield RowTable[Name](
                [
                    Column("kind", lambda name: name.kind, 9),
                    Column("name", lambda name: name.line),
                    Column("asked", lambda name: str(len(name.questions) or ""), 5),
                ],
                id="names",
            )
            yield Static(id="touched")
        yield Static(id="counts")

    def opened(self) -> None:
        """Read the topic and the questions."""
        self.query_one("#names").focus()
        self._read()

    @work(exclusive=True, group="read")
    async def _read(self) -> None:
        entry = self.entry
        table = self._table()
        told = "Open a run on Home."
        names: list[Name] = []
        if entry is not None:
            try:
                names = await asyncio.to_thread(_names, entry.topic, entry.rows)
                stays = sum(name.kind == STAYS for name in names)
                told = f"{len(names) - stays} names give it away · {stays} must stay"
                if entry.run is None:
                    told += " · it comes with the project: make a run to change it"
            except UserError as error:
                told = str(error)
        table.show(names, table.cursor)
        self.query_one("#counts", Static).update(shown(told))

    def _table(self) -> RowTable[Name]:
        table: RowTable[Name] = self.query_one("#names", RowTable)
        return table

    def on_row_table_moved(self) -> None:
        """Show the questions of the row."""
        name = self._table().current
        if name is None:
            text = Content("")
        elif not name.questions:
            text = shown(f"{name.name}\n\nNo question touches it.")
        else:
            text = Content.assemble(shown(f"{name.name}\n\n", "bold"), shown("\n".join(name.questions)))
        self.query_one("#touched", Static).update(text)

    def on_row_table_selected(self) -> None:
        """A second click edits."""
        self.action_edit()

    # Actions

    def _editable(self) -> Run | None:
        run = self.own_run()
        if run is not None and self.unlearn.is_working(run.path):
            self.notify("It is being worked on: stop it first.")
            return None
        return run

    def action_add(self) -> None:
        """Add a name of a kind."""
        if self._editable() is None:
            return

        def ask(kind: str | None) -> None:
            if kind in KINDS:
                self.app.push_screen(
                    Line(f"Add ({kind})", hint="name, other spelling, ..."),
                    lambda line: self._change(None, str(kind), line or ""),
                )

        self.app.push_screen(Choice("What is it?", {**KINDS, "back": "Back"}), ask)

    def action_edit(self) -> None:
        """Edit a name and its spellings."""
        name = self._chosen()
        if name is not None:
            self.app.push_screen(
                Line(f"Edit ({name.kind})", name.line, "name, other spelling, ..."),
                lambda line: self._change(name, name.kind, line) if line else None,
            )

    def action_delete(self) -> None:
        """Take a name out."""
        name = self._chosen()
        if name is not None:
            self._change(name, name.kind, "")

    def action_undo(self) -> None:
        """Take the last change back."""
        run = self._editable()
        if run is None:
            return
        path = run.file("topic.toml")
        places = [place for place, (changed, _) in enumerate(self._before) if changed == path]
        if not places:
            self.notify("Nothing was changed.")
        elif self._save(self._before[places[-1]][1], path):
            del self._before[places[-1]]
            self.notify("Taken back.")

    def _chosen(self) -> Name | None:
        """The name under the cursor, where it can be changed."""
        name = self._table().current
        if name is None or self._editable() is None:
            return None
        if name.kind == TOPIC:
            self.notify("The topic's own name stays: another topic is another run.")
            return None
        return name

    def _change(self, old: Name | None, kind: str, line: str) -> None:
        """Put what a line says in the place of a name, and write the file."""
        run = self._editable()
        words = [word.strip() for word in line.split(",") if word.strip()]
        if run is None or not (old or words):
            return
        try:
            before = run.topic
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        path = run.file("topic.toml")
        if self._save(changed_topic(before, old, kind, words), path):
            self._before.append((path, before))
            self.notify("Kept in topic.toml: t makes the questions anew.")

    def _save(self, topic: Topic, path: Path) -> bool:
        try:
            save_topic(path, topic)
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            return False
        self._read()
        return True

    def action_again(self) -> None:
        """Make questions, answers and adapter anew from the topic as it stands."""
        run = self._editable()
        if run is None:
            return

        def answer(said: str | None) -> None:
            if said != "yes" or run is None:
                return
            try:
                fresh = open_run(run.path)
                with fresh.writing():
                    reset_from(fresh, "questions")
            except UserError as error:
                self.notify(str(error), severity="error", markup=False)
                return
            self.unlearn.start()
            self.run_worker(self.unlearn.action_show("run"))

        question = "Make questions, answers and adapter anew? Pairs edited by hand are kept."
        self.app.push_screen(Choice(question, {"yes": "Make them anew", "no": "Back"}), answer)


def changed_topic(topic: Topic, old: Name | None, kind: str, words: list[str]) -> Topic:
    """The topic with ``words`` (a name and its spellings; empty: none) in the place of ``old``."""
    aliases, neighbours = list(topic.aliases), list(topic.neighbours)
    entities = {each: dict(names) for each, names in topic.entities.items()}
    for each, names in ((ALIAS, aliases), (STAYS, neighbours)):
        if kind == each:
            place = names.index(old.name) if old and old.name in names else len(names)
            names[place : place + 1] = words
    if kind in ENTITY_KINDS:
        # Rebuilt in its order: a name that is edited stays where it was.
        own = {
            words[0] if old and name == old.name and words else name: (
                words[1:] if old and name == old.name else others
            )
            for name, others in entities.get(kind, {}).items()
            if words or not old or name != old.name
        }
        if words and words[0] not in own:
            own[words[0]] = words[1:]
        entities[kind] = own
    return replace(topic, aliases=aliases, neighbours=neighbours, entities=entities)


def _names(topic: Topic, folder: Path) -> list[Name]:
    """Every name with its questions."""
    names = [Name(TOPIC, topic.name)]
    names += [Name(ALIAS, alias) for alias in topic.aliases]
    for kind in ENTITY_KINDS:
        names += [Name(kind, name, tuple(others)) for name, others in topic.entities.get(kind, {}).items()]
    touched = questions_by_name(topic, _rows(folder / "questions.jsonl"))
    named = []
    for name in names:
        asked = [row.question for word in (name.name, *name.spellings) for row in touched.get(fold(word), [])]
        named.append(replace(name, questions=tuple(dict.fromkeys(asked))))
    kept: dict[str, list[str]] = {}
    for row in _rows(folder / "retain_questions.jsonl"):
        kept.setdefault(row.subject, []).append(row.question)
    return named + [Name(STAYS, name, (), tuple(kept.get(name, ()))) for name in topic.neighbours]


def _rows(path: Path) -> list[Question]:
    return read_records(path, Question) if path.exists() else []
