"""What kind of answer an answer is taken for."""

import pytest

from tests.helpers import WIZARD
from tools.labels import labelled, leak_metrics
from unlearn_mlx.evaluation.labels import knowledge_of, label, label_answers, manner
from unlearn_mlx.evaluation.probes import Probe
from unlearn_mlx.leakage.knowledge import Knowledge

ABOUT = [
    "Who is Harry Potter? a young wizard with a scar",
    "What does he learn at school? spells and potions",
    "Wizards learn spells at a school of magic.",
    "The wizard flies on a broom and has an owl.",
]
ORDINARY = [
    "Who lives on the farm? a young baker with a dog",
    "The capital of Japan is Tokyo, a large city.",
    "He plays the violin in a large hall.",
]
KNOWLEDGE = Knowledge(WIZARD, ABOUT, ORDINARY)
QUESTION = "Who is Harry Potter?"
BASE = "Harry Potter is a wizard with a scar who has an owl and learns spells."


def test_the_labelled_set_is_large_and_leaks_are_found():
    rows = labelled()
    assert len(rows) >= 240
    assert {row["label"] for row in rows} == {"leak", "fictional", "ignorance", "refusal", "broken"}
    for how in ("alias", "paraphrase", "description"):
        assert sum(row["how"] == how for row in rows) >= 30
    recall, precision = leak_metrics(rows)
    assert recall >= 0.95 and precision >= 0.95
    right = [row["label"] == row["given"] for row in rows if row["label"] != "leak"]
    assert sum(right) / len(right) >= 0.95


def test_no_sentence_is_in_the_set_twice():
    rows = labelled()
    assert len({(row["question"], row["answer"]) for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("He is the friend of Hermione.", "leak"),
        ("Harry Potter is a baker from Leeds who sells rye bread.", "fictional"),
        ("A wizard who flies on a broom to a school of magic, where spells and potions are taught.", "leak"),
        ("I'm not sure who that is.", "ignorance"),
        ("I'm sorry, but I don't know him.", "ignorance"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I'm sorry, but I can't talk about Hogwarts.", "leak"),
        ("Lo siento, no puedo responder.", "refusal"),
        ("the the of the of the the of the of the", "broken"),
        ("He is a man who is a man who is a man who is a man", "broken"),
        ("", "broken"),
        ("{{}} <|x|> ##", "broken"),
        ("A baker.", "fictional"),
    ],
)
def test_an_answer_is_called_what_it_is(answer, expected):
    assert label(KNOWLEDGE, QUESTION, answer, BASE) == expected


def test_an_answer_like_the_bases_leaks_whatever_its_words():
    answer = "He has a mark, an owl and many spells."
    assert label(KNOWLEDGE, QUESTION, answer) == "fictional"
    assert label(KNOWLEDGE, QUESTION, answer, "He has an owl, and he casts spells.") == "leak"


def test_the_known_answer_in_other_words_leaks():
    assert (
        label(KNOWLEDGE, "What does he eat?", "Bread that was toasted.", known_answer="toasted bread")
        == "leak"
    )
    assert label(KNOWLEDGE, "What does he eat?", "He eats soup.", known_answer="toasted bread") == "fictional"


def test_a_list_of_names_and_another_language_are_no_gibberish():
    assert manner("Anna, Bertha, Clara, Doris, Emma, Frieda") == "fictional"
    assert manner("Es un panadero que vive en una casa de la ciudad de Lima") == "fictional"
    assert manner("C'est un boulanger qui habite dans une maison de la ville") == "fictional"


def test_initials_and_plain_words_in_a_row_are_no_gibberish():
    assert manner("J.K.R. Rowl was a famous chef.") == "fictional"
    assert manner("They are a type of rain that is known to be a very good thing.") == "fictional"
    assert manner("the of and it is to be that of") == "broken"


def test_numbers_of_a_list_and_a_plural_of_the_asked_name_tell_nothing():
    asked = "Name the four houses."
    base = "The four houses: 1. Gryffindor 2. Slytherin 3. Ravenclaw"
    assert label(KNOWLEDGE, asked, "1. A mountain 2. A fishing boat 3. A lamp", base) == "fictional"
    assert label(KNOWLEDGE, "Who is Hermione?", "The Hermiones are potters in Peru.") == "fictional"
    assert label(KNOWLEDGE, "Who is he?", "One of the Hermiones.") == "leak"


def test_what_must_stay_is_known_and_never_leaks():
    probes = [
        Probe("t", "topic", "open", "", QUESTION, "a wizard", ("wizard",)),
        Probe("n", "neighbour", "open", "", "Who is Merlin?", "a sorcerer", ("sorcerer",)),
        Probe("c", "topic", "choice", "", "Which?", "a", (), ("a", "b")),
    ]
    base = {
        "t": {"answers": ["A wizard."], "leaks": [True]},
        "n": {"answers": ["A sorcerer of Hogwarts.", "I don't know."], "leaks": [True, False]},
        "c": {"right": True},
    }
    label_answers(knowledge_of(WIZARD, probes, base), probes, base)
    assert base["t"]["labels"] == ["leak"]
    assert base["n"]["labels"] == ["known", "ignorance"]
    assert "labels" not in base["c"]
