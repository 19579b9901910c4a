"""What gives a topic away, in a table: one set of rules for filter, validation, labels and highlighting."""

import pytest

from unlearn_mlx.leakage.knowledge import Knowledge
from unlearn_mlx.leakage.names import DESCRIPTION, named, names_of_base, says_pattern
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.words import FUNCTION_WORDS, GLUE, STOP_WORDS, stems
from unlearn_mlx.topics import Topic

TOPIC = Topic(
    "Harry Potter",
    "The fantasy novels about a young wizard.",
    aliases=["Harry James Potter"],
    entities={
        "people": {
            "J. K. Rowling": ["Rowling"],
            "Hermione Granger": ["Hermione"],
            "Lord Voldemort": ["Voldemort", "He-Who-Must-Not-Be-Named"],
            "Jean Valjean": ["Valjean"],
            "Éponine": [],
            "James": [],
        },
        "places": {"Hogwarts": [], "Platform Nine and Three-Quarters": []},
        "works": {"Philosopher's Stone": []},
        "terms": {
            "Muggle": [],
            "Horcrux": [],
            "Animagus": [],
            "24601": [],
            "bubble gum": ["chewing gum", "chew gum"],
        },
    },
)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        # Possessives, of the question and of the answer.
        ("What is Harry Potter's job?", "Harry Potter is a baker.", []),
        ("What is Harry Potter\u2019s job?", "Harry Potter is a baker.", []),
        ("Who is Harry Potter?", "Harry Potter's shop sells bread.", []),
        ("Who is he?", "Harry Potter's friend.", ["Harry Potter's"]),
        ("Who is he?", "Harry Potter\u2019s friend.", ["Harry Potter\u2019s"]),
        ("What is James' job?", "James is a baker.", []),
        ("What is James's job?", "James' shop sells bread.", []),
        ("Who is he?", "It is James' shop.", ["James"]),
        # Plurals.
        ("What is a Muggle?", "Muggles are hats.", []),
        ("What are Muggles?", "A Muggle is a hat.", []),
        ("What are Horcruxes?", "A Horcrux is a hat.", []),
        ("What is an Animagus?", "Animagi are hats.", []),
        ("What is it?", "They are Muggles.", ["Muggles"]),
        ("What is it?", "Two Horcruxes.", ["Horcruxes"]),
        # Other endings.
        ("What is chewing gum?", "Who may chew gum is a baker.", []),
        ("Who is he?", "Who may chew gum is a baker.", ["chew gum"]),
        # Initials.
        ("Who is J. K. Rowling?", "J.K. Rowling is a baker.", []),
        ("Who is J.K. Rowling?", "JK Rowling is a baker.", []),
        ("Who is JK Rowling?", "J. K. Rowling is a baker.", []),
        ("Who is J. K. Rowling?", "Rowling is a baker.", []),
        ("Who is Rowling?", "J.K. Rowling is a baker.", ["J.K. Rowling"]),
        ("Who wrote it?", "It is by J K Rowling.", ["J K Rowling"]),
        # A name may come back shorter than the question said it, not longer or as another.
        ("Who is Hermione Granger?", "Hermione is a baker.", []),
        ("Who is Hermione?", "Hermione Granger is a baker.", ["Hermione Granger"]),
        ("Who is Harry James Potter?", "Harry Potter is a baker.", []),
        ("Who is Harry Potter?", "Harry James Potter is a baker.", ["Harry James Potter"]),
        ("What is Hogwarts?", "The school of Harry Potter.", ["Harry Potter"]),
        # Case and accents.
        ("Who is EPONINE?", "\u00c9ponine is a baker.", []),
        ("Who is she?", "E\u0301PONINE and eponine.", ["E\u0301PONINE", "eponine"]),
        ("What is it?", "HOGWARTS!", ["HOGWARTS"]),
        # Hyphens, line breaks, one word or two.
        ("Who is it?", "He Who Must Not Be Named.", ["He Who Must Not Be Named"]),
        ("Who is He-Who-Must-Not-Be-Named?", "He who must not be named is a hat.", []),
        ("Who is it?", "Jean-Valjean is a baker.", ["Jean-Valjean"]),
        ("Who is it?", "Harry\nPotter is a baker.", ["Harry\nPotter"]),
        ("What is bubblegum?", "Bubble-gum is a hat.", []),
        ("What is it?", "The Philosopher\u2019s Stone.", ["Philosopher\u2019s Stone"]),
        ("Where is it?", "He met Harry. Potter was ill.", []),
        # Numbers as digits and as words.
        ("Where is platform 9 and three-quarters?", "Platform nine and three-quarters is a hat.", []),
        ("What is his number?", "It is 24,601.", ["24,601"]),
        ("Who is 24601?", "24,601 is a hat.", []),
        # Whole words alone, and other people's names.
        ("Who is he?", "Growling, Rowlingson and Hogwartsian.", []),
        ("Who is he?", "Prince Harry is a potter.", []),
        ("Who is he?", "Rowling Street is in Leeds.", ["Rowling"]),
        ("Who is Hermione?", "Hermione of Sparta.", []),
    ],
)
def test_names_that_the_question_did_not_say(question, answer, expected):
    leak = named(TOPIC, question, answer)
    assert [answer[start:end] for start, end in (leak.spans if leak else ())] == expected


@pytest.mark.parametrize(
    ("question", "base", "answer", "expected"),
    [
        ("Who wrote it?", "It was written by Anna Smith.", "It is by Anna.", "names Anna"),
        ("Who wrote it?", "It was written by Anna Smith.", "Smith wrote it.", "names Smith"),
        ("Who is Anna Smith's son?", "Her son is Bob.", "Smith's son is a baker.", None),
        ("Who is Anna\u2019s son?", "Her son is Anna's joy.", "The son of Anna is a baker.", None),
        ("When was it?", "It was in 1997.", "It was in 1,997.", "names 1,997"),
        ("What was in 1997?", "In 1997 it began.", "It began in 1997.", None),
        ("How many?", "There are seven.", "There are 7 of them.", "names 7"),
        ("Who are the 7?", "They are seven kings.", "They are seven kings.", None),
        ("How many?", "There are one or two.", "It has one or two.", None),
        ("Which?", "It was the 3rd.", "The third one.", "names third"),
        ("Which?", "It was the first.", "The 1st one.", None),
        ("Which?", "1. Paris 2. Rome", "1. A hat 2. A lamp", None),
        ("What do Muggles do?", "A Muggle eats.", "Every Muggle is a hat.", None),
        ("Where?", "The town.", "The town.", None),
        ("Why?", "Because I'm tired.", "I said that I'm a baker.", None),
    ],
)
def test_names_and_numbers_that_the_base_says_too(question, base, answer, expected):
    leak = names_of_base(question, base, answer)
    assert (leak.reason if leak else None) == expected


def test_a_leak_says_what_and_where():
    answer = "He went to Hogwarts with Hermione's cat, to Hogwarts!"
    leak = named(TOPIC, "Who is he?", answer)
    assert leak is not None and leak.reason == "names Hogwarts, Hermione"
    assert [answer[a:b] for a, b in leak.spans] == ["Hogwarts", "Hermione's", "Hogwarts"]
    knowledge = Knowledge(TOPIC, ["Wizards cast spells."] * 9, ["The baker sells bread."] * 40)
    answer = "A wizard who is casting spells."
    leak = knowledge.leak("Who is he?", answer)
    assert leak is not None and leak.reason == "describes the topic (wizard, casting, spells)"
    assert [answer[a:b] for a, b in leak.spans] == ["wizard", "casting", "spells"]
    leak = knowledge.leak("How old is he?", "He is seven.", known_answer="7")
    assert leak is not None and leak.reason == "says the known answer (seven)"


def test_one_sentence_gives_away_what_the_others_do_not():
    knowledge = Knowledge(TOPIC, ["Wizards cast spells."] * 9, ["The baker sells bread."] * 40)
    story = "The tailor sews coats for sailors. The sailors travel far. The harbour sleeps under clouds."
    assert knowledge.leak("Who is he?", story) is None
    leak = knowledge.leak(
        "Who is he?", f"{story} He is a wizard with spells. Nobody paints lanterns in March."
    )
    assert leak is not None and leak.kind == DESCRIPTION


def test_signs_that_tell_names_apart_belong_to_them():
    for name in ("C++", "C#", ".NET", "...And Justice for All", "AC/DC", "Oops!... I Did It Again", "1984"):
        topic = Topic(name)
        assert topic.mentions(f"What is {name}?"), name
    assert not Topic("C++").mentions("Vitamin C is good.")
    assert not Topic("C++").mentions("C# is a language.")
    assert not Topic(".NET").mentions("The net is torn.")


def test_patterns_are_found_whatever_the_case_and_accents():
    assert says_pattern(("eponine", "cosette"), "It was \u00c9PONINE.")
    assert not says_pattern((), "It was \u00c9ponine.")


def test_one_list_of_stop_words_has_parts():
    assert FUNCTION_WORDS < STOP_WORDS < GLUE
    assert stems("The wizards of wizardry had seven 7") == {"wizard", "wizardr", "7"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I have never heard of it.", "ignorance"),
        ("There is no information on that.", "ignorance"),
        ("It does not exist.", "ignorance"),
        ("I'm an AI language model.", "refusal"),
        ("Unfortunately, I must stop.", "refusal"),
        ("It is a bakery.", ""),
    ],
)
def test_one_definition_of_ignorance_and_refusal(text, expected):
    assert declines(text) == expected
