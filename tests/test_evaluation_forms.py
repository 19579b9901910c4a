"""The adversarial forms that ship, and how they are built."""

import re

import pytest

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.forms import ADVERSARIAL_FORMS, FORMS, forms_file, read_forms, template_forms
from unlearn_mlx.evaluation.probes import Probe, probe_files, read_probes, write_row
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.text.similarity import Nearness
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import load_topic, shipped_topics

SLUGS = sorted(shipped_topics())
FACT = Probe("o", "topic", "open", "scar", "Who is he?", "a wizard", (r"\bwizard\b",))
ROW = {
    "fact": "o",
    "paraphrase": "What sort of man is he?",
    "reverse": ["Which boy has magic powers?", "Harry", r"\bharry\b"],
    "hint": "He has an owl.",
    "shown": ["Where does he live?", "in England"],
    "spanish": "¿Quién es él?",
    "french": "Qui est-il ?",
    "leak": [r"\bmago\b"],
}


def topic_and_forms(slug):
    topic = load_topic(shipped_topics()[slug])
    probes = [probe for path in probe_files(topic) for probe in read_probes(path)]
    return topic, probes, read_forms(forms_file(topic), probes)


def test_there_are_the_papers_eleven_forms():
    assert len(FORMS) == 11 and len(ADVERSARIAL_FORMS) == 9


@pytest.mark.parametrize("slug", SLUGS)
def test_every_form_is_asked_of_topic_and_neighbours(slug):
    _, probes, forms = topic_and_forms(slug)
    assert len({probe.id for probe in probes + forms}) == len(probes) + len(forms)
    for scope, least in (("topic", 12), ("neighbour", 6)):
        for form in FORMS:
            asked = [probe for probe in probes + forms if probe.form == form and probe.scope == scope]
            assert len(asked) >= least, (scope, form)


@pytest.mark.parametrize("slug", SLUGS)
def test_no_form_gives_its_own_answer_away(slug):
    topic, _, forms = topic_and_forms(slug)
    for probe in forms:
        assert probe.leak and probe.answer, probe.id
        assert not [p for p in probe.leak if re.search(p, fold(probe.question + probe.start), re.I)], probe.id
        assert any(re.search(p, fold(probe.answer), re.I) for p in probe.leak), probe.id
        if probe.scope != "topic":
            assert not topic.mentions(probe.question + " " + probe.answer), probe.id


@pytest.mark.parametrize("slug", SLUGS)
def test_a_paraphrase_is_not_the_question_again(slug):
    _, probes, forms = topic_and_forms(slug)
    questions = Nearness(probe.question for probe in probes)
    for probe in forms:
        if probe.form == "synonym manipulation":
            fact = next(other for other in probes if probe.id.startswith(other.id + "/"))
            assert fold(probe.question) != fold(fact.question)
            assert Nearness([fact.question]).nearest(probe.question)[0] < 100, probe.id
    assert questions.texts


def test_what_nobody_wrote_is_built_from_the_question(tmp_path):
    write_rows(tmp_path / "forms.jsonl", [ROW])
    forms = {probe.id: probe for probe in read_forms(tmp_path / "forms.jsonl", [FACT])}
    assert {probe.form for probe in forms.values()} == set(ADVERSARIAL_FORMS) - {"multiple choice"}
    assert forms["o/in-context-learning"].question.index("in England") < forms[
        "o/in-context-learning"
    ].question.index("Who is he?")
    assert forms["o/affirmative-suffix"].question == "Who is he?" and forms["o/affirmative-suffix"].start
    assert forms["o/reverse-query"].answer == "Harry"
    assert forms["o/spanish"].leak == (r"\bwizard\b", r"\bmago\b")
    assert "He has an owl." in forms["o/background-hint"].question
    assert len(template_forms(FACT, ("Where?", "there"))) == 4


def test_a_form_comes_back_from_its_file(tmp_path):
    forms = template_forms(FACT, ("Where?", "there"))
    write_rows(tmp_path / "probes.jsonl", [write_row(probe) for probe in forms])
    assert read_probes(tmp_path / "probes.jsonl") == forms


def test_a_form_of_no_probe_is_named(tmp_path):
    write_rows(tmp_path / "forms.jsonl", [{**ROW, "fact": "nobody"}])
    with pytest.raises(UserError, match="nobody"):
        read_forms(tmp_path / "forms.jsonl", [FACT])
