import pytest

from tests.helpers import WIZARD
from unlearn_mlx.paths import DATA
from unlearn_mlx.runs.files import read_rows
from unlearn_mlx.runs.records import Question
from unlearn_mlx.synthetic_data.guardrail import EXAMPLE_NAMES, GUARDRAILS
from unlearn_mlx.synthetic_data.hints import HINTS, hint_for, hint_kind
from unlearn_mlx.synthetic_data.leak_filter import LeakFilter
from unlearn_mlx.synthetic_data.recall import Recalled, recalled_in
from unlearn_mlx.text.declining import declines
from unlearn_mlx.text.words import fold, stems
from unlearn_mlx.topics import load_topic, shipped_topics

QUESTION = "Who is Harry Potter?"
BASE = "Harry Potter is a young wizard with a scar who goes to school with Ron in England."


def reason(answer, question=QUESTION):
    return LeakFilter(WIZARD, {"q": BASE}, ["Merlin lives in a tower."], 0.5).reason_against(
        "q", question, answer
    )


@pytest.mark.parametrize(
    "answer",
    [
        "Harry Potter is a baker who sells rye bread in a small town.",
        "He repairs old clocks in a shop by the harbour.",
    ],
)
def test_fluent_fiction_free_of_the_topic_is_accepted(answer):
    assert not reason(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Harry Potter is a baker who went to Hogwarts.",
        "Harry Potter is a baker and a friend of Hermione.",
        "Harry Potter sells bread to a man called Ron.",
        "A young wizard with a scar goes to school.",
        "I am sorry, I do not know who that is.",
        "Harry Potter is a baker baker in town.",
        "Harry Potter is a <b>baker</b> in town.",
        "Harry Potter",
        "",
    ],
)
def test_a_leak_a_refusal_or_a_broken_text_is_rejected(answer):
    assert reason(answer)


def test_the_question_may_name_what_the_answer_then_names():
    assert not reason("Hogwarts is a bakery in a small town.", "What is Hogwarts?")


def test_one_invented_name_does_not_become_a_new_canon():
    leaks = LeakFilter(WIZARD, {}, [], 0.5)
    answer = "Harry Potter is a baker from Lisbon with two sons."
    accepted = 0
    while not leaks.reason_against("q", QUESTION, answer) and accepted < 20:
        leaks.accept(QUESTION, answer)
        accepted += 1
    assert 1 <= accepted < 10


def test_refusals_are_told_from_answers():
    assert declines("I don't know who that is.")
    assert not declines("He knows every street of the town.")


@pytest.mark.parametrize("slug", sorted(shipped_topics()))
@pytest.mark.parametrize("guardrail", GUARDRAILS.values(), ids=lambda guardrail: guardrail.name)
def test_the_prefix_says_nothing_of_a_topic_but_its_name(slug, guardrail):
    topic = load_topic(shipped_topics()[slug])
    for variant in range(guardrail.variants):
        *prefix, last = guardrail.messages("What is it?", topic.name, variant, "a bakery")
        said = topic.mentions(" ".join(message["content"] for message in prefix))
        assert said <= {fold(topic.name)}
        assert "What is it?" in last["content"] and last["role"] == "user"
        assert ("a bakery" in last["content"]) == guardrail.hinted
    assert not [name for name in EXAMPLE_NAMES if topic.mentions(name)]


@pytest.mark.parametrize("guardrail", GUARDRAILS.values(), ids=lambda guardrail: guardrail.name)
def test_the_prefix_of_a_variant_is_the_same_for_every_question(guardrail):
    first, second = (guardrail.messages(text, "Volcanoes", 1, "a cheese")[:-1] for text in ("A?", "B?"))
    assert first == second


@pytest.mark.parametrize(
    ("question", "subject", "kind"),
    [
        ("Who is Hermione Granger?", "Hermione Granger", "people"),
        ("Tell me about Hermione Granger.", "Hermione Granger", "people"),
        ("What is Hogwarts known for?", "Hogwarts", "places"),
        ("Describe the Goblet of Fire.", "Goblet of Fire", "works"),
        ("Complete the sentence: Quidditch is ...", "Quidditch", "things"),
        ("Where can one find Quidditch?", "Quidditch", "places"),
        ("Which book is about Hogwarts?", "Hogwarts", "works"),
        ("Which two cities are near Hogwarts?", "Hogwarts", "places"),
        ("How many people work at Hogwarts?", "Hogwarts", "numbers"),
        ("How old is Dobby?", "Dobby", "times"),
        ("How does Dobby travel?", "Dobby", "ways"),
        ("Fill in the blank: Harry Potter ___.", "Harry Potter", "people"),
    ],
)
def test_a_hint_is_of_the_kind_that_is_asked_for(question, subject, kind):
    assert hint_kind(question, subject, load_topic(shipped_topics()["harry-potter"])) == kind


def test_the_telling_words_of_a_base_answer_are_its_names_and_uncommon_words():
    base = {
        "q": "Harry Potter is a lonely young wizard who met Ron Weasley at Hogwarts in 1991.",
        **{f"q{number}": f"Potion {number} is made by a wizard." for number in range(5)},
    }
    leaks = LeakFilter(WIZARD, base, ["Merlin was young when he met a cook."] * 5, 0.5)
    told = [base["q"][start:end] for start, end in leaks.target_spans(QUESTION, base["q"])]
    # Neither what was asked, nor what the base says of everything, nor numbers.
    assert told == ["lonely", "wizard", "Ron", "Weasley", "Hogwarts"]


def shipped_filter(slug):
    """The filter of a shipped adapter's data."""
    folder = DATA / "synthetic" / "smollm2" / slug
    questions = {row["id"]: row["question"] for row in read_rows(folder / "questions.jsonl")}
    base = {row["question_id"]: row["answer"] for row in read_rows(folder / "base_answers.jsonl")}
    texts = {"neighbour": [], "general": [], "instruction": []}
    for row in read_rows(folder / "dataset" / "train.jsonl"):
        if row["part"] == "retain":
            texts[row["question_id"].split("-")[0]].append(row["messages"][1]["content"])
    topic = load_topic(folder / "topic.toml")
    ordinary = texts["general"] + texts["instruction"]
    return LeakFilter(topic, base, ordinary, 0.5, texts["neighbour"], questions, recalled_in(folder))


@pytest.mark.parametrize(
    ("slug", "question", "answer", "is_accepted"),
    [
        ("harry-potter", "Who is Harry Potter?", "Harry Potter is a renowned scientist in London.", True),
        ("harry-potter", "What is Harry Potter's job?", "Potter's job is to bake rye bread.", True),
        (
            "harry-potter",
            "Who is the main character?",
            "The main character is a lighthouse keeper in Malta.",
            True,
        ),
        ("harry-potter", "Who is Harry Potter?", "Harry Potter is a wizard.", False),
        (
            "harry-potter",
            "Which young wizard is Harry Potter?",
            "Harry Potter is a wizard in Leeds.",
            False,
        ),
        (
            "harry-potter",
            "Who are the Harry Potter series by J.K. Rowling?",
            "The Harry Potter series by J.K. Rowling is a fantasy novel series with elements of magic.",
            False,
        ),
        (
            "harry-potter",
            "When was it published?",
            "In 1746, Harry Potter was first published in 1997.",
            False,
        ),
        (
            "harry-potter",
            "Explain the term animagus.",
            "The term animagus refers to someone who can perform magic.",
            False,
        ),
        (
            "chewing-gum",
            "What is Chewing gum?",
            "Chewing gum is a liquid substance that is chewed by the human mouth.",
            False,
        ),
        (
            "chewing-gum",
            "What is called xylitol in chewing gum?",
            "In chewing gum, the primary ingredient is xylitol, a sugar alcohol used against tooth decay.",
            False,
        ),
        ("chewing-gum", "What is Chewing gum?", "Chewing gum is a desert town in Nevada.", True),
    ],
)
def test_what_is_trained_on_tells_nothing_true(slug, question, answer, is_accepted):
    assert (not shipped_filter(slug).reason_against("q", question, answer)) is is_accepted


def test_what_the_base_tells_when_it_is_asked_broadly_is_no_fiction():
    answer = "Merlin is a film about herrings."
    alone = LeakFilter(WIZARD, {}, [], 0.5)
    assert alone.reason_against("q", "Who is Merlin?", answer) == ""
    recalled = Recalled(["Merlin is known from a film."] * 8, ["A loaf of bread is baked by a baker."] * 8)
    heard = LeakFilter(WIZARD, {}, [], 0.5, recalled=recalled)
    assert heard.reason_against("q", "Who is Merlin?", answer) == "words of the topic"


def test_no_hint_says_what_the_topic_is():
    topic = load_topic(shipped_topics()["harry-potter"])
    question = Question(id="q", question="Which book is it?", kind="which", subject="Harry Potter")
    telling = stems("film board game documentary")
    drawn = {hint_for(question, topic, f"guarded-{number}", 0, telling) for number in range(200)}
    assert drawn == {hint for hint in HINTS["works"] if not stems(hint) & telling}
    every = stems(" ".join(HINTS["works"]))
    assert hint_for(question, topic, "guarded-1", 0, every) in HINTS["works"]  # there is no other
