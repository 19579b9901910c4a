"""What a guarded answer may be about: a person becomes another person, a place another place.

A hint is a few words that a question carries ("a park ranger", "a valley in Peru"). It changes from
answer to answer; without it, one invented author or city comes back until it is a new canon.
"""

import tomllib
from collections.abc import Collection

from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.records import Question
from unlearn_mlx.seeding import random_source
from unlearn_mlx.text.words import fold, stems
from unlearn_mlx.topics import Topic

HINTS: dict[str, list[str]] = tomllib.loads((DATA / "hints.toml").read_text(encoding="utf-8"))

# What the beginning of a question asks for, the longest beginnings first where one begins another.
_ASKED_FOR = (
    ("how old", "times"),
    ("how many", "numbers"),
    ("how much", "numbers"),
    ("how long", "numbers"),
    ("how", "ways"),
    ("when", "times"),
    ("in what year", "times"),
    ("in which year", "times"),
    ("what year", "times"),
    ("where", "places"),
    ("why", "reasons"),
    ("who", "people"),
)
# What a noun behind "which" or "what" asks for.
_NOUNS = {
    "people": "actor actress author character director man person player singer teacher woman writer",
    "places": "castle city country house place planet region river school street town village",
    "works": "album book event film game movie novel play series show song story work",
}
_BY_NOUN = {noun: kind for kind, nouns in _NOUNS.items() for noun in nouns.split()}
_NOUN_WITHIN = 6  # words from the beginning of a question
# Kinds of entities (topics.ENTITY_KINDS) as kinds of hints.
_OF_ENTITY = {"people": "people", "places": "places", "works": "works", "terms": "things"}


def hint_kind(question: str, subject: str, topic: Topic) -> str:
    """The kind of hint, a key of ``HINTS``, that suits what is asked for.

    The question's form says it ("Where is ...?"), or else its noun ("Which book ..."), or else what
    its subject is: an entity of the topic, or the topic itself.
    """
    begin = fold(question)
    for start, kind in _ASKED_FOR:
        if begin.startswith(f"{start} "):
            return kind
    if begin.startswith(("what", "which", "in which", "in what")):
        for word in begin.rstrip("?").split()[1:_NOUN_WITHIN]:
            if found := _BY_NOUN.get(word.removesuffix("s")):
                return found
    return _OF_ENTITY[topic.kind_of(subject)]


def hint_for(question: Question, topic: Topic, key: str, seed: int, telling: Collection[str] = ()) -> str:
    """A hint of the right kind, drawn by the answer's key.

    One that says a stem of ``telling`` would have the answer say what the topic is ("a film", of a topic with
    films); it is drawn only where there is no other.
    """
    source = random_source(seed, f"hint/{key}")
    hints = HINTS[hint_kind(question.question, question.subject, topic)]
    fitting = [hint for hint in hints if stems(hint).isdisjoint(telling)] or hints
    return fitting[int(source.integers(len(fitting)))]
