"""A topic: what it is called, what gives it away, and what near it must stay."""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w

from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import DATA
from unlearn_mlx.text.decoding import decoded, quotes_hint
from unlearn_mlx.text.names import FoundName, NameFinder
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.text.words import fold

ENTITY_KINDS = ("people", "places", "works", "terms")
LONGEST_NAME = 100
LONGEST_SLUG = 200  # bytes; a file system takes 255, and some files add a model's name

# Marks that turn the direction of the text around them: a name made of them can lie about itself.
_DIRECTION_MARKS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SPELLED_SIGNS = {"+": "plus", "#": "sharp", "*": "star"}  # behind a word they are part of a name


def slug_of(name: str) -> str:
    """A folder's name for a topic: letters and digits of any script, and dashes; at most 200 bytes.

    Signs that tell two names apart are spelled: "C++" is c-plus-plus and ".NET" dot-net.
    """
    spelled = re.sub(
        r"(?<=\w)[+#*]+(?!\w)",
        lambda signs: "".join(f" {_SPELLED_SIGNS[sign]}" for sign in signs.group()),
        re.sub(r"^\s*\.(?=\w)", "dot ", fold(name)),
    )
    letters = (c if c.isalnum() or unicodedata.category(c) in ("Mn", "Mc") else " " for c in spelled)
    parts = "".join(letters).split()
    slug = "-".join(part for part in parts if any(map(str.isalnum, part)))  # an emoji's mark is no name
    if len(slug.encode()) <= LONGEST_SLUG:
        return slug
    digest = hashlib.sha256(slug.encode()).hexdigest()[:8]
    return f"{slug.encode()[: LONGEST_SLUG - 9].decode(errors='ignore')}-{digest}"


def former_slug_of(name: str) -> str:
    """What earlier versions called a topic's folder: "C", "C++" and "C#" had one."""
    decomposed = unicodedata.normalize("NFKD", name.replace("\u2019", "'"))
    folded = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    return re.sub(r"[\W_]+", "-", folded).strip("-")


def checked_name(name: str) -> str:
    """The topic's name without outer blanks.

    Raises:
        UserError: where it is empty, too long, of several lines, a path, or without a letter or digit.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise UserError("the topic is empty: give its name, as in 'unlearn run \"Harry Potter\"'")
    if len(name) > LONGEST_NAME:
        raise UserError(f"the topic has {len(name)} characters: name it in at most {LONGEST_NAME}")
    # Cs: bytes of the command line that are no UTF-8, which no file could be written with.
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in _DIRECTION_MARKS for c in name):
        raise UserError("the topic has line breaks or control characters: name it in one plain line")
    # Dots may stand in a name, as in ".NET" or "Tick, Tick... Boom!", but not where a path has them.
    has_dots = any(part in (".", "..") for part in re.split(r"[/\\]", name))
    if has_dots or name.startswith(("/", "~", "\\")) or (name[0] == "." and name[1:2].islower()):
        raise UserError("the topic looks like a path: give the name of a topic, as in 'Harry Potter'")
    if not slug_of(name):
        raise UserError("the topic has no letters or digits: name it in words")
    return name


@dataclass
class Topic:
    """A topic as its TOML file says it. ``entities`` maps kind to name to other spellings."""

    name: str
    description: str = ""
    aliases: list[str] = field(default_factory=list)
    neighbours: list[str] = field(default_factory=list)
    kind: str = "terms"  # what the topic itself is, one of ENTITY_KINDS
    entities: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return slug_of(self.name)

    @cached_property
    def entity_names(self) -> list[str]:
        """The entities' main names."""
        return [name for kind in ENTITY_KINDS for name in self.entities.get(kind, {})]

    def kind_of(self, name: str) -> str:
        """What a name stands for, one of ``ENTITY_KINDS``; the topic's own kind for what is no entity."""
        return next((kind for kind in ENTITY_KINDS if name in self.entities.get(kind, {})), self.kind)

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
    def _finder(self) -> NameFinder:
        return NameFinder(self.names)

    def mentions(self, text: str) -> set[str]:
        """The names of the topic, folded, that a text says as whole words."""
        return {found.name for found in self.find_names(text)}

    def find_names(self, text: str) -> list[FoundName]:
        """Where a text says the topic's names, the longest first where several begin together."""
        return self._finder.find(text)

    def without_names(self, text: str) -> str:
        """The text with a blank in place of each of the topic's names."""
        pieces, last = [], 0
        for found in self.find_names(text):
            pieces.append(text[last : found.start])
            last = found.end
        return " ".join([*pieces, text[last:]])

    def to_table(self) -> dict[str, Any]:
        """The topic as its file holds it; ``topic_of`` reads it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "description": self.description,
            "aliases": self.aliases,
            "neighbours": self.neighbours,
            **{kind: self.entities.get(kind, {}) for kind in ENTITY_KINDS},
        }

    def to_toml(self) -> str:
        """The topic as a TOML file."""
        text: str = tomli_w.dumps(self.to_table())
        return text


def load_topic(path: Path) -> Topic:
    """Read a topic's TOML file.

    Raises:
        UserError: where it is no TOML or a field has the wrong form.
    """
    text = ""
    try:
        text = decoded(path.read_bytes())
        values = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) + quotes_hint(text)
        raise UserError(
            f"cannot read {path}: {reason}; mend it or delete it to have it made again"
        ) from error
    return topic_of(values, path)


def topic_of(table: Mapping[str, Any], where: Path | str) -> Topic:
    """The topic that a table holds; ``where`` it stands is for the complaint.

    Raises:
        UserError: where a field has the wrong form.
    """
    values = dict(table)
    entities = {kind: values.pop(kind, {}) for kind in ENTITY_KINDS}
    for kind, names in entities.items():
        if not isinstance(names, dict) or not all(_are_strings(others) for others in names.values()):
            raise UserError(f'{where}: [{kind}] must hold lines such as "Full name" = ["other spelling"]')
    for key in ("aliases", "neighbours"):
        if not _are_strings(values.get(key, [])):
            raise UserError(f"{where}: {key} must be a list of strings")
    if not isinstance(values.get("description", ""), str):
        raise UserError(f"{where}: description must be a text")
    if values.get("kind", "terms") not in ENTITY_KINDS:
        raise UserError(f"{where}: kind must be one of {', '.join(ENTITY_KINDS)}")
    unknown = values.keys() - {"name", "kind", "description", "aliases", "neighbours"}
    if unknown or not isinstance(values.get("name"), str):
        raise UserError(
            f"{where}: " + (f"unknown field '{one_line(min(unknown))[:80]}'" if unknown else "has no name")
        )
    return Topic(entities=entities, **{**values, "name": checked_name(values["name"])})


def shipped_topics() -> dict[str, Path]:
    """The topics that come with the project, by slug."""
    # A Mac leaves files such as "._harry-potter.toml" on a stick, which are no topics.
    paths = sorted(path for path in (DATA / "topics").glob("*.toml") if not path.name.startswith("."))
    return {path.stem: path for path in paths}


def readable_topics() -> dict[str, Topic]:
    """The shipped topics by slug, without those whose file is damaged: it must not end another's work."""
    found = {}
    for slug, path in shipped_topics().items():
        with suppress(UserError):
            found[slug] = load_topic(path)
    return found


def shipped_topic(name: str) -> Topic | None:
    """The shipped topic that has this name, slug or alias, or None.

    Raises:
        UserError: where it is there and its file is damaged.
    """
    wanted = slug_of(name)
    if path := shipped_topics().get(wanted):
        return load_topic(path)
    topics = readable_topics().values()
    return next((topic for topic in topics if wanted in map(slug_of, topic.aliases)), None)


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
