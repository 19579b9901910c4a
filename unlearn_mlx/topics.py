"""A topic: what it is called, what gives it away, and what near it must stay."""

import re
import tomllib
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w

from unlearn_mlx.errors import UserError

DATA = Path(__file__).resolve().parent.parent / "data"
ENTITY_KINDS = ("people", "places", "works", "terms")
LONGEST_NAME = 100

# Marks that turn the direction of the text around them: a name made of them can lie about itself.
_DIRECTION_MARKS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def fold(text: str) -> str:
    """Lower case without accents, for comparing."""
    decomposed = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def slug_of(name: str) -> str:
    """A folder's name for a topic: letters and digits of any script, and dashes."""
    return re.sub(r"[\W_]+", "-", fold(name)).strip("-")


def checked_name(name: str) -> str:
    """The topic's name without outer blanks.

    Raises:
        UserError: where it is empty, too long, of several lines, a path, or without a letter.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise UserError("the topic is empty: give its name, as in 'unlearn run \"Harry Potter\"'")
    if len(name) > LONGEST_NAME:
        raise UserError(f"the topic has {len(name)} characters: name it in at most {LONGEST_NAME}")
    # Cs: bytes of the command line that are no UTF-8, which no file could be written with.
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in _DIRECTION_MARKS for c in name):
        raise UserError("the topic has line breaks or control characters: name it in one plain line")
    if ".." in name or name.startswith(("/", "~", ".", "\\")):
        raise UserError("the topic looks like a path: give the name of a topic, as in 'Harry Potter'")
    if not any(c.isalpha() for c in name):
        raise UserError("the topic has no letters: name it in words")
    return name


@dataclass
class Topic:
    """A topic as its TOML file says it. ``entities`` maps kind to name to other spellings."""

    name: str
    description: str = ""
    aliases: list[str] = field(default_factory=list)
    neighbours: list[str] = field(default_factory=list)
    entities: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return slug_of(self.name)

    @cached_property
    def entity_names(self) -> list[str]:
        """The entities' main names."""
        return [name for kind in ENTITY_KINDS for name in self.entities.get(kind, {})]

    @property
    def is_bare(self) -> bool:
        """Whether nobody has said more of it than its name."""
        return not (self.aliases or self.neighbours or self.entity_names)

    @cached_property
    def names(self) -> list[str]:
        """Every string that gives the topic away: name, aliases, entities in all spellings."""
        spellings = [self.name, *self.aliases]
        for kind in ENTITY_KINDS:
            for name, others in self.entities.get(kind, {}).items():
                spellings += [name, *others]
        return list(dict.fromkeys(spellings))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # The longest first, so that "Harry Potter" is found before a name inside it.
        folded = sorted({fold(name) for name in self.names if fold(name).strip()}, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, folded)) + r")(?:'s|s)?(?!\w)")

    def mentions(self, text: str) -> set[str]:
        """The names of the topic, folded, that a text says as whole words."""
        return {match.group().removesuffix("'s") for match in self._pattern.finditer(fold(text))}

    def mention_spans(self, text: str) -> list[tuple[int, int, str]]:
        """Where a text says the topic's names: start, end, and the name as ``mentions`` gives it."""
        pieces = [fold(character) for character in text]
        places = [place for place, piece in enumerate(pieces) for _ in piece]
        return [
            (places[match.start()], places[match.end() - 1] + 1, match.group().removesuffix("'s"))
            for match in self._pattern.finditer("".join(pieces))
        ]

    def leak_spans(self, question: str, answer: str) -> list[tuple[int, int]]:
        """Where an answer says names of the topic that its question did not say: start and end of each."""
        asked = self.mentions(question)
        return [
            (start, end)
            for start, end, name in self.mention_spans(answer)
            if not any(name in other for other in asked)
        ]

    def to_toml(self) -> str:
        """The topic as a TOML file."""
        tables: dict[str, Any] = {kind: self.entities.get(kind, {}) for kind in ENTITY_KINDS}
        text: str = tomli_w.dumps(
            {
                "name": self.name,
                "description": self.description,
                "aliases": self.aliases,
                "neighbours": self.neighbours,
                **tables,
            }
        )
        return text


def load_topic(path: Path) -> Topic:
    """Read a topic's TOML file.

    Raises:
        UserError: where it is no TOML or a field has the wrong form.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot read {path}: {reason}; mend it or delete it to have it made again"
        ) from error
    entities = {kind: values.pop(kind, {}) for kind in ENTITY_KINDS}
    for kind, names in entities.items():
        if not isinstance(names, dict) or not all(_are_strings(others) for others in names.values()):
            raise UserError(f'{path}: [{kind}] must hold lines such as "Full name" = ["other spelling"]')
    for key in ("aliases", "neighbours"):
        if not _are_strings(values.get(key, [])):
            raise UserError(f"{path}: {key} must be a list of strings")
    if not isinstance(values.get("description", ""), str):
        raise UserError(f"{path}: description must be a text")
    unknown = values.keys() - {"name", "description", "aliases", "neighbours"}
    if unknown or not isinstance(values.get("name"), str):
        raise UserError(f"{path}: " + (f"unknown field '{min(unknown)}'" if unknown else "has no name"))
    return Topic(entities=entities, **{**values, "name": checked_name(values["name"])})


def shipped_topics() -> dict[str, Path]:
    """The topics that come with the project, by slug."""
    return {path.stem: path for path in sorted((DATA / "topics").glob("*.toml"))}


def shipped_topic(name: str) -> Topic | None:
    """The shipped topic that has this name, slug or alias, or None."""
    wanted = slug_of(name)
    for slug, path in shipped_topics().items():
        if slug == wanted:
            return load_topic(path)
        topic = load_topic(path)
        if wanted in {slug_of(alias) for alias in topic.aliases}:
            return topic
    return None


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
