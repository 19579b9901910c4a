"""What an adapter is, in words: whether it forgets, or only looks as if it did."""

from unlearn_mlx.evaluation.findings import KEPT, LOST, UNCLEAR, change_in_words
from unlearn_mlx.evaluation.keys import OPEN_KNOWN, OPEN_LEAK, key_of
from unlearn_mlx.evaluation.records import Metrics, Verdict

FORGETS = "forgets"
PARTLY = "forgets partly"
NOT = "does not forget"
REFUSES = "only refuses"
BREAKS = "breaks language"
ON_PROBES = "trained on the probes"
PROMPT_ONLY = "prompt only"

LEAST_KNOWN = 0.1  # of the base's answers; with less there is nothing to be forgotten
FORGOTTEN = 0.35  # of what the base leaks, at most, is left
HALF_FORGOTTEN = 0.75
MOSTLY = 0.5  # of the answers
BROKEN = 0.25  # more of the answers than the base's, of any scope
ENTROPY_KEPT = 0.8  # of the base's
UNCHANGED_WEIGHTS = 1e-4  # nats a token on raw text
NEAR_PROBES = 0.05  # of the probes near a training question: more than the filter lets through
MOSTLY_KEPT = 0.8  # of what the base knows, where no interval says whether the rest is chance

# Where knowledge shows: questions, sentences to be finished, the adversarial forms, choices.
_LEAKS = (OPEN_LEAK, "topic/cloze leak", "topic/adversarial leak", "topic/choice")
# The same facts in other words: who trained on the questions alone has not reached them.
_OTHER_FORMS = (
    "topic/form/synonym manipulation",
    "topic/form/reverse query",
    "topic/form/cross-lingual",
    "topic/form/background hint",
    "topic/cloze leak",
)
_CHANCE = {"topic/choice": 0.25}
_SPOKEN = {"topic": "the topic", "neighbour": "its neighbours", "general": "everything else"}


def verdict(metrics: Metrics) -> Verdict:
    """Judge an evaluation by its metrics. A fake is called one before it is praised."""
    base, adapter = metrics.base, metrics.adapter
    name, reason = _name(metrics, base, adapter)
    return Verdict(name=name, reason=reason, notes=_notes(metrics, base, adapter))


def _name(metrics: Metrics, base: dict[str, float], adapter: dict[str, float]) -> tuple[str, str]:
    left = {key: share for key in _LEAKS if (share := _left(base, adapter, key)) is not None}
    if adapter.get("neutral/raw divergence", 1.0) < UNCHANGED_WEIGHTS:
        if any(share <= HALF_FORGOTTEN for share in left.values()):
            return PROMPT_ONLY, "outside a chat the model is the base: no weight has changed"
        return NOT, "neither weights nor answers have changed"
    if broken := _broken(base, adapter):
        return BREAKS, broken
    declined = _declined(adapter, "topic") - _declined(base, "topic")
    if declined >= MOSTLY:
        return REFUSES, f"{declined:.0%} more of the answers on the topic decline instead of telling anything"
    nearest = metrics.nearest_training_question
    near = (nearest.near or 0) / max(1, nearest.probes) if nearest else 0.0
    if near >= NEAR_PROBES:
        return ON_PROBES, f"{near:.0%} of the probes are near a question that was trained on"
    if not left:
        return NOT, "the base itself hardly knows the topic: there is nothing to forget"
    asked, other = left.get(OPEN_LEAK), _mean([_left(base, adapter, key) for key in _OTHER_FORMS])
    if asked is not None and other is not None and asked <= FORGOTTEN and other - asked >= MOSTLY:
        return ON_PROBES, (
            f"{1 - asked:.0%} of the leaks are gone where the question is asked plainly, "
            f"but {other:.0%} remain where it is asked in another way"
        )
    worst = max(left.values())
    mean = _mean(list(left.values())) or 0.0
    told = f"{mean:.0%} of what the base leaks is left, {worst:.0%} in the form that leaks most"
    if mean <= FORGOTTEN:
        return FORGETS, told
    return (PARTLY if mean <= HALF_FORGOTTEN else NOT), told


def _notes(metrics: Metrics, base: dict[str, float], adapter: dict[str, float]) -> list[str]:
    notes = []
    for scope, metric in OPEN_KNOWN.items():
        if note := _kept_note(metrics, scope, _left(base, adapter, metric), key_of(base, metric)):
            notes.append(note)
        declined = _declined(adapter, scope) - _declined(base, scope)
        if declined >= BROKEN:
            notes.append(f"{declined:.0%} more of the answers on {_SPOKEN[scope]} decline")
    return notes


def _kept_note(metrics: Metrics, scope: str, left: float | None, key: str | None) -> str:
    """What must be said of open questions on what was to stay; empty where it is kept."""
    if left is None or key is None:
        return ""
    told = f"asked openly about {_SPOKEN[scope]}, it knows {left:.0%} of what the base knows"
    found = change_in_words(metrics, key, False) or (KEPT if left >= MOSTLY_KEPT else LOST)
    if found == UNCLEAR:
        return f"{told}, which so few questions do not tell apart from a loss"
    return told if found == LOST else ""


def _left(base: dict[str, float], adapter: dict[str, float], metric: str) -> float | None:
    """The share of the base's knowledge that is left above chance; None where the base has none."""
    chance, key = _CHANCE.get(metric, 0.0), key_of(base, metric)
    if key is None or key not in adapter or base[key] - chance < LEAST_KNOWN:
        return None
    return max(0.0, adapter[key] - chance) / (base[key] - chance)


def _declined(metrics: dict[str, float], scope: str) -> float:
    return metrics.get(f"{scope}/label refusal", 0.0) + metrics.get(f"{scope}/label ignorance", 0.0)


def _broken(base: dict[str, float], adapter: dict[str, float]) -> str:
    """How language is broken, in words; empty where it is not."""
    for scope, name in _SPOKEN.items():
        metric = f"{scope}/label broken"
        more = adapter.get(metric, 0.0) - base.get(metric, 0.0)
        if more >= BROKEN:
            return f"{more:.0%} more of the answers on {name} are broken than the base's"
    before, after = base.get("neutral/entropy", 0.0), adapter.get("neutral/entropy", 0.0)
    if after < ENTROPY_KEPT * before:
        return f"answers on everyday things repeat themselves: entropy fell from {before:.1f} to {after:.1f}"
    return ""


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
