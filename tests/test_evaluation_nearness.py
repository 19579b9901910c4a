"""When two questions ask the same, and when they only speak of the same thing."""

import pytest

from tests.helpers import kind_named
from unlearn_mlx.synthetic_data.questions import QuestionFilter
from unlearn_mlx.text.similarity import NEAR_DUPLICATE, Nearness

SAME = [
    ("Who are the two best friends of Harry Potter?", "Who are Harry Potter's two best friends?"),
    ("What is the name of Harry Potter's owl?", "Which owl does Harry Potter have?"),
    ("Who was Rubeus Hagrid?", "Who is Rubeus Hagrid?"),
    ("What is the capital city of France?", "Which city is the capital of France?"),
    ("Who wrote the novel Les Misérables?", "Who wrote Les Misérables, the novel?"),
    ("What are the main ingredients of chewing gum?", "Which main ingredients does chewing gum have?"),
]
OTHER = [
    ("Who is Harry Potter?", "Where does Harry Potter live?"),
    ("What is Hogwarts?", "Where is Hogwarts?"),
    ("When was Hogwarts built?", "Who built Hogwarts?"),
    ("Why is Harry Potter famous?", "Who is Harry Potter?"),
    (
        "What is Harry Potter and the Philosopher's Stone about?",
        "What does Harry Potter and the Philosopher's Stone cost?",
    ),
    ("What is the capital of France?", "What is the capital of Spain?"),
    ("Who is Harry Potter's mother?", "Who is Harry Potter's father?"),
    ("Tell me about the sea.", "The sea is"),
    ("What is chewing gum?", "What is chewing gum made of?"),
    ("Which sport does Harry Potter play at school?", "Which house at school is Harry Potter in?"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_question_in_other_words_is_near(first, second):
    similarity, text = Nearness([first, "Why is the sky blue?"]).nearest(second)
    assert similarity >= NEAR_DUPLICATE and text == first
    assert Nearness([second]).holds(first)


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_another_question_on_the_same_thing_is_not(first, second):
    assert not Nearness([first]).holds(second)
    assert not Nearness([second]).holds(first)


def test_nothing_is_near_nothing():
    assert Nearness().nearest("Who is he?") == (0.0, "")


def test_a_paraphrase_of_a_probe_is_never_trained_on_but_other_questions_are():
    checker = QuestionFilter(["Who are Harry Potter's two best friends?"])
    refused = checker.reason_against("Who are the two best friends of Harry Potter?", kind_named("who"))
    assert refused == "near a probe"
    for question in ("Who are Harry Potter's parents?", "Who is the best teacher of Harry Potter?"):
        assert not checker.reason_against(question, kind_named("who"))
