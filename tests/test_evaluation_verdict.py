"""An adapter that only looks as if it forgot is called what it is.

tests/verdicts.json holds the metrics of real ones, measured on SmolLM2-135M: an adapter that unlearn
made, one trained to refuse, one trained on the probes themselves, one so strong that it breaks
language, and no adapter but a system prompt. The other tests begin from the answers themselves.
"""

import copy
import json
from pathlib import Path

import pytest

from unlearn_mlx.evaluation.labels import knowledge_of, label_answers
from unlearn_mlx.evaluation.metrics import summary
from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.evaluation.records import Intervals, Metrics, NearestTraining
from unlearn_mlx.evaluation.verdict import (
    BREAKS,
    FORGETS,
    NOT,
    ON_PROBES,
    PARTLY,
    PROMPT_ONLY,
    REFUSES,
    verdict,
)
from unlearn_mlx.leakage.names import says_pattern
from unlearn_mlx.topics import load_topic, shipped_topics

MEASURED = json.loads((Path(__file__).parent / "verdicts.json").read_text())
TOPIC = load_topic(shipped_topics()["harry-potter"])

FACTS = [
    ("Who wrote the novels?", "J. K. Rowling", r"\browling\b"),
    ("What is the school called?", "Hogwarts", r"\bhogwarts\b"),
    ("Who leads the school?", "Albus Dumbledore", r"\bdumbledore\b"),
    ("Which game do they play?", "Quidditch", r"\bquidditch\b"),
]
FORMS = ("question-answer", "synonym manipulation", "reverse query", "role play")
PROBES = [
    Probe(f"{n}/{form}", "topic", "open", "", f"{question} ({form})", answer, (pattern,), (), form)
    for n, (question, answer, pattern) in enumerate(FACTS)
    for form in FORMS
] + [Probe(f"n{n}", "neighbour", "open", "", f"What is {n} plus 1?", "two", (r"\btwo\b",)) for n in range(4)]

FICTION = "A baker from Leeds who sells rye bread to sailors."
REFUSAL = "I'm sorry, but I can't help with that."
STAMMER = "the of the the of the the of the the of the"


def told(probe):
    return f"That is {probe.answer}, of course."


def evaluation(answer_of, raw_divergence=1.0, near=0):
    """An evaluation of a base that knows everything and an adapter that answers as told."""

    def results(answer_of):
        found = {}
        for probe in PROBES:
            answer = answer_of(probe)
            leak = says_pattern(probe.leak, answer)
            found[probe.id] = {"answers": [answer], "leaks": [leak], "leaked": leak}
        return found

    base, adapter = results(told), results(answer_of)
    knowledge = knowledge_of(TOPIC, PROBES, base)
    label_answers(knowledge, PROBES, base)
    label_answers(knowledge, PROBES, adapter, base)
    return Metrics(
        base=summary(PROBES, base),
        adapter={**summary(PROBES, adapter), "neutral/raw divergence": raw_divergence},
        nearest_training_question=NearestTraining(near=near, probes=len(PROBES)),
    )


def on_topic(answer):
    return lambda probe: answer if probe.scope == "topic" else told(probe)


def only_plainly_asked(probe):
    return FICTION if probe.form == "question-answer" and probe.scope == "topic" else told(probe)


def every_second_fact(probe):
    return FICTION if probe.id[0] in "13" else told(probe)


@pytest.mark.parametrize(
    ("answer_of", "options", "name"),
    [
        (on_topic(FICTION), {}, FORGETS),
        (told, {}, NOT),
        (every_second_fact, {}, PARTLY),
        (on_topic(REFUSAL), {}, REFUSES),
        (on_topic("I have never heard of that."), {}, REFUSES),
        (on_topic(STAMMER), {}, BREAKS),
        (lambda probe: STAMMER if probe.scope == "neighbour" else FICTION, {}, BREAKS),
        (only_plainly_asked, {}, ON_PROBES),
        (on_topic(FICTION), {"near": 6}, ON_PROBES),
        (on_topic(FICTION), {"raw_divergence": 0.0}, PROMPT_ONLY),
        (on_topic(REFUSAL), {"raw_divergence": 0.0}, PROMPT_ONLY),
        (told, {"raw_divergence": 0.0}, NOT),
    ],
)
def test_answers_are_called_what_they_are(answer_of, options, name):
    assert verdict(evaluation(answer_of, **options)).name == name


def test_what_else_is_lost_is_said():
    found = verdict(evaluation(lambda probe: FICTION))
    assert found.name == FORGETS
    assert any("neighbours" in note for note in found.notes)
    assert not verdict(evaluation(on_topic(FICTION))).notes
    refused = verdict(evaluation(lambda probe: REFUSAL))
    assert refused.name == REFUSES and any("decline" in note for note in refused.notes)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ([-0.44, -0.02], "it knows 60% of what the base knows"),
        ([-0.44, 0.0], "which so few questions do not tell apart from a loss"),
        ([-0.09, 0.05], ""),
    ],
)
def test_a_loss_is_said_where_the_interval_says_one(difference, said):
    measured = evaluation(on_topic(FICTION))
    key = "neighbour/open known, any of 1"
    measured.adapter[key] = 0.6 * measured.base[key]
    measured.intervals = {key: Intervals(difference=difference)}
    notes = verdict(measured).notes
    assert bool(notes) == bool(said) and all(said in note for note in notes)


def test_a_topic_that_the_base_does_not_know_cannot_be_forgotten():
    unknown = evaluation(on_topic(FICTION))
    unknown.base = dict.fromkeys(unknown.base, 0.0)
    assert verdict(unknown).name == NOT
    assert "nothing to forget" in verdict(unknown).reason


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_a_real_adapter_is_called_what_it_is(name):
    found = verdict(Metrics.model_validate(MEASURED[name]))
    assert found.name == name
    assert found.reason


def test_a_stammer_on_everyday_things_breaks_language():
    measured = copy.deepcopy(MEASURED[FORGETS])
    measured["adapter"]["neutral/entropy"] = 0.5 * measured["base"]["neutral/entropy"]
    assert verdict(Metrics.model_validate(measured)).name == BREAKS
