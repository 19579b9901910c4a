import pytest

from tests.helpers import kind_named
from unlearn_mlx.synthetic_data.kinds import QUESTION_KINDS
from unlearn_mlx.synthetic_data.questions import QuestionFilter
from unlearn_mlx.text.words import distinct_bigrams, is_repetitive, proper_names, whole_sentences


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
