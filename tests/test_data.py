"""What ships with the project: topics and hand-written probes."""

import re

import pytest

from unlearn_mlx.evaluation.probes import probe_files, read_probes
from unlearn_mlx.paths import DATA
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import load_topic, shipped_topics

SLUGS = sorted(shipped_topics())


def topic_and_probes(slug):
    topic = load_topic(shipped_topics()[slug])
    return topic, [probe for path in probe_files(topic) for probe in read_probes(path)]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_topic_says_what_belongs_to_it_and_what_is_near(slug):
    topic = load_topic(shipped_topics()[slug])
    assert topic.slug == slug
    assert topic.description
    assert len(topic.entity_names) >= 20
    assert len(topic.neighbours) >= 15
    assert not [name for name in topic.neighbours if topic.mentions(name)]


@pytest.mark.parametrize("slug", SLUGS)
def test_there_are_enough_probes_of_every_kind(slug):
    _, probes = topic_and_probes(slug)
    assert len({probe.id for probe in probes}) == len(probes)
    assert sum(probe.scope == "topic" for probe in probes) >= 60
    assert sum(probe.scope != "topic" for probe in probes) >= 120
    for scope in ("topic", "neighbour", "general"):
        assert {probe.kind for probe in probes if probe.scope == scope} == {"open", "choice", "cloze"}
    assert {probe.scope for probe in probes} == {"topic", "neighbour", "general"}


@pytest.mark.parametrize("slug", SLUGS)
def test_a_probe_can_be_answered(slug):
    _, probes = topic_and_probes(slug)
    for probe in probes:
        assert probe.question.strip() and probe.answer.strip(), probe.id
        if probe.kind != "open":
            assert len(set(probe.choices)) == 4, probe.id
            assert probe.answer in probe.choices, probe.id
        if probe.kind != "choice":
            assert probe.leak, probe.id


@pytest.mark.parametrize("slug", SLUGS)
def test_a_leak_pattern_finds_the_answer_and_not_the_question(slug):
    _, probes = topic_and_probes(slug)
    for probe in probes:
        patterns = [re.compile(pattern, re.IGNORECASE) for pattern in probe.leak]
        if patterns:
            assert any(pattern.search(fold(probe.answer)) for pattern in patterns), probe.id
        assert not [p for p in patterns if p.search(fold(probe.question))], probe.id


@pytest.mark.parametrize("slug", SLUGS)
def test_what_must_stay_never_names_the_topic(slug):
    topic, probes = topic_and_probes(slug)
    for probe in probes:
        if probe.scope != "topic":
            said = " ".join([probe.question, probe.answer, *probe.choices])
            assert not topic.mentions(said), probe.id


def test_no_question_is_asked_twice():
    for path in sorted((DATA / "probes").glob("*.jsonl")):
        questions = [(probe.kind, fold(probe.question)) for probe in read_probes(path)]
        assert len(set(questions)) == len(questions), path.name
