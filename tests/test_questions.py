from collections import Counter

import numpy as np
import pytest

from tests.helpers import WIZARD, kind_named
from unlearn_mlx.evaluation.forms import forms_file, read_forms
from unlearn_mlx.evaluation.probes import probe_files, read_probes
from unlearn_mlx.evaluation.side_effects import neutral_prompts
from unlearn_mlx.runs.records import AcceptanceEvent, Question, SampledAnswer
from unlearn_mlx.synthetic_data.acceptance import acceptance, acceptance_sentences
from unlearn_mlx.synthetic_data.coverage import coverage_sentence
from unlearn_mlx.synthetic_data.kinds import QUESTION_KINDS
from unlearn_mlx.synthetic_data.questions import QuestionFilter, _dealt, topic_subjects
from unlearn_mlx.synthetic_data.stages import everyday_instructions
from unlearn_mlx.text.similarity import Nearness
from unlearn_mlx.text.words import distinct_bigrams, is_repetitive, proper_names, whole_sentences
from unlearn_mlx.topics import Topic, load_topic, shipped_topics


def test_a_question_is_taken_once_however_it_is_written():
    checker = QuestionFilter([])
    assert not checker.reason_against("Who is the headmaster of the school?", kind_named("who"))
    assert checker.reason_against("who is THE headmaster of the school?", kind_named("who"))
    assert not checker.reason_against("Where is the castle of the king?", kind_named("where"))


def test_a_question_near_a_probe_is_never_taken():
    checker = QuestionFilter(["Who are Harry Potter's two best friends?"])
    assert checker.reason_against("Who are the two best friends Harry Potter's?", kind_named("who"))
    assert checker.reason_against("Who are Harry Potter's two best friends?", kind_named("who"))


@pytest.mark.parametrize(
    "text", ["", "Who?", "Who is the", "Who is <b>he</b> now?", "Who who who is he?", "Who is he " * 20 + "?"]
)
def test_a_broken_question_is_dropped(text):
    assert QuestionFilter([]).reason_against(text, kind_named("who"))


def test_the_issue_kinds_are_all_there():
    names = {kind.name for kind in QUESTION_KINDS}
    assert {"who", "what", "where", "when", "why", "cloze", "completion", "reverse"} <= names
    assert {"description", "comparison", "role play", "request"} <= names


def test_each_subject_has_its_turn_before_any_has_a_second():
    topic = Topic("Owls", entities={"people": {f"Owl {number}": [] for number in "abcdefgh"}})
    subjects = topic_subjects(topic)
    dealt = _dealt(subjects, [], len(subjects), np.random.default_rng(0))
    assert Counter(dealt) == Counter(subjects)
    asked = [
        Question(id=f"topic-{name}", question=f"Who is {name}?", kind="who", subject=name)
        for name in ("Owl a", "Owl b", *["Owls"] * 12)
    ]
    later = [subject.name for subject in _dealt(subjects, asked, 12, np.random.default_rng(0))]
    assert set(later) == {f"Owl {number}" for number in "cdefgh"}


def test_it_is_said_which_names_nobody_asks_about():
    topic = Topic("Owls", entities={"people": {"Hedwig": ["Hettie"], "Errol": [], "Pigwidgeon": []}})
    asked = ["Who feeds Hettie and Errol?", "Where does Hedwig sleep?", "Who is the oldest?"]
    questions = [
        Question(id=f"topic-{number}", question=text, kind="who", subject="Owls")
        for number, text in enumerate(asked, start=1)
    ]
    said = coverage_sentence(topic, questions)
    assert said == "2 of 3 names are asked about, 1 more than once; not: Pigwidgeon"
    assert coverage_sentence(Topic("Owls"), questions) == ""


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("He bakes. He sel", "He bakes."),
        ("No end here", ""),
        ("He met Dr. Who and", ""),
        ("It is by J. K. Smith.", "It is by J. K. Smith."),
        ('He said "no."\nAnd', 'He said "no."'),
    ],
)
def test_an_answer_is_cut_after_its_last_whole_sentence(text, whole):
    assert whole_sentences(text) == whole


def test_repetition_and_names_are_seen():
    assert is_repetitive("the old man and the old man and so on")
    assert not is_repetitive("the old man and the sea")
    assert distinct_bigrams("a b a b a b") < 0.5 < distinct_bigrams("one two three four")
    assert proper_names("She met Anna's friend in Paris in 1950.") >= {"anna", "paris", "1950"}


def test_everyday_instructions_are_many_and_none_is_near_what_the_evaluation_asks():
    instructions = [each.question for each in everyday_instructions(Topic("Zorbing"), [], 10_000, 0)]
    assert len(set(instructions)) == len(instructions) >= 150
    asked = Nearness(neutral_prompts())
    for path in shipped_topics().values():
        topic = load_topic(path)
        probes = [probe for file in probe_files(topic) for probe in read_probes(file)]
        for probe in (*probes, *read_forms(forms_file(topic), probes)):
            asked.add(probe.question)
        assert not [each for each in instructions if topic.mentions(each)], topic.name
    assert not [each for each in instructions if asked.holds(each)]
    taken = QuestionFilter([])
    assert not [each for each in instructions if taken.taken.holds(each) or taken.taken.add(each)]


def test_everyday_instructions_are_drawn_by_the_seed_and_never_on_the_topic_or_near_a_probe():
    drawn = everyday_instructions(WIZARD, [], 8, 0)
    assert drawn == everyday_instructions(WIZARD, [], 8, 0) != everyday_instructions(WIZARD, [], 8, 1)
    assert len({each.id for each in drawn}) == 8 and {each.kind for each in drawn} == {"instruction"}
    assert drawn[0] not in everyday_instructions(WIZARD, [drawn[0].question], 10_000, 0)
    told = everyday_instructions(Topic("Pancakes"), [], 10_000, 0)
    assert told and not any("pancakes" in each.question for each in told)
    assert everyday_instructions(WIZARD, [], 0, 0) == []


def test_acceptance_is_told_by_kind_the_worst_first():
    kinds = ("who", "who", "why", "quotation")
    questions = [Question(id=str(number), question="Q?", kind=kind) for number, kind in enumerate(kinds)]
    reasons = ("", "refusal", "", "refusal")
    answers = [
        SampledAnswer(question_id=str(number), answer="A.", accepted=not reason, reason=reason)
        for number, reason in enumerate(reasons)
    ]
    first, second = acceptance_sentences(
        AcceptanceEvent(stage="answers", kind="acceptance", **acceptance(questions, answers))
    )
    assert "50% of the guarded answers accepted" in first and "2 refusal" in first
    assert second == "accepted by kind: quotation 0%, who 50%, why 100%"
