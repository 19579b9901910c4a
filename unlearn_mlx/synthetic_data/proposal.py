"""For a topic that nobody described: the base model proposes what belongs to it and what is near it."""

import re
from collections import Counter
from collections.abc import Sequence

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.generation import Completion, Request, generate
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data.consistency import consistent_names
from unlearn_mlx.synthetic_data.questions import FEWEST_ENTITIES
from unlearn_mlx.text.words import content_words, fold, is_plain, words
from unlearn_mlx.topics import ENTITY_KINDS, Topic

_ASKED = {
    "aliases": "other names",
    "people": "people or characters",
    "places": "places",
    "works": "books, films, songs or products",
    "terms": "special words and things",
    "neighbours": "other things that are similar but not the same",
}
_MOST = {"aliases": 3, "people": 12, "places": 8, "works": 8, "terms": 12, "neighbours": 24}
SAMPLES = 4
REPEATED = 2  # lists that must name an entity
_EXAMPLE = ("Luke Skywalker", "Darth Vader", "Princess Leia", "Han Solo", "Yoda")


def propose_topic(model: ChatModel, work: Work, name: str) -> Topic:
    """A topic whose fields the base model filled in, for the user to read and edit."""
    requests = [
        Request(
            f"propose-{field}-{sample}",
            tuple(model.chat_tokens(_messages(name, asked), "1.")),
            90,
            temperature=0.6 if sample else 0.0,
        )
        for field, asked in _ASKED.items()
        for sample in range(SAMPLES)
    ]
    completions = generate(model, requests, work.settings.seed, work.is_cancelled, work.workers)
    found: dict[str, list[str]] = {}
    seen: set[str] = {fold(name)}
    for number, field in enumerate(_ASKED):
        lists = completions[number * SAMPLES : (number + 1) * SAMPLES]
        # An invented entity would be asked about and forbidden; an odd neighbour does no harm.
        least = 1 if field == "neighbours" else REPEATED
        found[field] = _items(name, lists, seen, least)[: _MOST[field]]
    proposed = [(kind, item) for kind in ENTITY_KINDS for item in found[kind]]
    kept = consistent_names(model, work, proposed)
    if len(kept) < FEWEST_ENTITIES:
        work.run.event(
            "questions",
            "message",
            text=f"the model knows {len(kept)} of {len(proposed)} names that it proposed: "
            f"more questions are about {name} itself",
        )
    own = content_words(name)
    return Topic(
        name=name,
        description="",
        # A wrong alias would reject good answers; only spellings of the name itself are safe.
        aliases=[alias for alias in found["aliases"] if set(words(alias)) & set(words(name))],
        neighbours=[item for item in found["neighbours"] if not set(words(item)) & own],
        entities={kind: {item: [] for each, item in kept if each == kind} for kind in ENTITY_KINDS},
    )


def _messages(name: str, asked: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "List 5 people or characters of Star Wars. Names only, one a line."},
        {"role": "assistant", "content": "\n".join(f"{n}. {item}" for n, item in enumerate(_EXAMPLE, 1))},
        {"role": "user", "content": f"List 8 {asked} of {name}. Names only, one a line."},
    ]


def _items(name: str, completions: Sequence[Completion], seen: set[str], least: int = 1) -> list[str]:
    """What at least ``least`` of the lists name, in the order it comes; it counts as seen from then on."""
    # A small model says the example's names of any topic.
    shown = () if "star wars" in fold(name) else ("star wars", *map(fold, _EXAMPLE))
    spelled: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for completion in completions:
        # The last line may be cut off by the length limit.
        lines = ("1." + completion.text).splitlines()
        listed: set[str] = set()
        for line in lines if completion.finished else lines[:-1]:
            item = re.sub(r"^\s*(?:\d+[.)]|[-*•])\s*", "", line).strip(" .\"'")
            item = re.split(r"\s[-–—:(]\s?|:\s", item)[0].strip()
            if not 3 <= len(item) <= 40 or len(words(item)) > 5 or not is_plain(item):
                continue
            # A word of the language at large would reject every other answer.
            if not any(c.isupper() for c in item) and len(words(item)) < 2:
                continue
            if fold(item) not in seen and not any(other in fold(item) for other in shown):
                spelled.setdefault(fold(item), item)
                listed.add(fold(item))
        counts.update(listed)
    found = [item for folded, item in spelled.items() if counts[folded] >= least]
    seen.update(map(fold, found))
    return found
