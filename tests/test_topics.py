import pytest

from tests.helpers import WIZARD
from unlearn_mlx.errors import UserError
from unlearn_mlx.topics import Topic, checked_name, fold, load_topic, shipped_topic, shipped_topics, slug_of


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("  \t ", "empty"),
        ("x" * 5000, "5000 characters"),
        ("Harry\nPotter", "line breaks"),
        ("Harry\x00Potter", "control"),
        ("Harry\u202ePotter", "control"),
        ("\u2066Potter\u2069", "control"),
        ("../../x", "path"),
        ("/etc/passwd", "path"),
        ("~/x", "path"),
        (".hidden", "path"),
        ("a/../b", "path"),
        ("🧙🏽", "no letters"),
        ("1984", "no letters"),
        ("-- / --", "no letters"),
        ("broken \udcff byte", "control"),
    ],
)
def test_a_name_that_cannot_be_a_topic_is_refused_with_the_reason(name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        checked_name(name)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Harry Potter", "harry-potter"),
        ("Les Misérables", "les-miserables"),
        ("  C++ and Rust  ", "c-and-rust"),
        ("AC/DC", "ac-dc"),
        ("هاري بوتر", "هاري-بوتر"),
        ("ハリー・ポッター", None),
        ("Wizards 🧙", "wizards"),
        ("Orwell's 1984", "orwell-s-1984"),
    ],
)
def test_a_name_in_any_script_is_a_topic_with_a_folder_of_its_own(name, slug):
    topic = Topic(checked_name(name))
    assert topic.slug
    assert slug is None or topic.slug == slug
    assert not set("/\\. \n") & set(topic.slug)
    assert topic.mentions(f"What is {topic.name}?")


def test_a_topic_is_found_in_a_text_as_whole_words_in_any_spelling():
    for text in (
        "HARRY POTTER!",
        "harry potter's owl",
        "Harry Potter\u2019s owl",
        "(Hogwarts)",
        "by Rowling.",
        "two Harry Potters",
    ):
        assert WIZARD.mentions(text), text
    for text in ("a potter named Harry", "Hogwartsian", "growling", "Rowlingson", ""):
        assert not WIZARD.mentions(text), text


def test_accents_do_not_hide_a_name():
    topic = Topic("Les Misérables", entities={"people": {"Éponine": []}})
    assert topic.mentions("LES MISERABLES") == topic.mentions("les misérables")
    assert topic.mentions("Eponine and e\u0301ponine") == {"eponine"}


def test_the_longest_name_is_found():
    assert WIZARD.mentions("Hermione Granger") == {"hermione granger"}


def test_a_topic_file_comes_back_as_it_was(tmp_path):
    awkward = Topic(
        'A "quoted" name', "two\nlines", ["ä", "日本"], ["x = 1", "# no"], {"people": {"O'Neil": ["a.b"]}}
    )
    for topic in (WIZARD, awkward, Topic("Plain")):
        topic.save(tmp_path / "topic.toml")
        loaded = load_topic(tmp_path / "topic.toml")
        assert (loaded.name, loaded.aliases, loaded.neighbours) == (
            topic.name,
            topic.aliases,
            topic.neighbours,
        )
        assert loaded.names == topic.names


@pytest.mark.parametrize(
    "content",
    [
        b"name = ",
        b"\xff\xfe",
        b"",
        b"name = 5",
        b'name = "A"\naliases = "B"',
        b'name = "A"\nneighbours = [1]',
        b'name = "A"\npeople = ["B"]',
        b'name = "A"\n[people]\n"B" = "C"',
        b'name = "A"\nnaem = "B"',
        b'name = "../../x"',
    ],
)
def test_a_damaged_topic_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "topic.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_topic(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_shipped_topics_are_found_by_name_slug_and_alias():
    assert set(shipped_topics()) == {"harry-potter", "les-miserables", "chewing-gum"}
    for name in ("Harry Potter", "harry potter", "HARRY-POTTER", "Harry James Potter"):
        topic = shipped_topic(name)
        assert topic is not None, name
        assert topic.name == "Harry Potter"
    assert shipped_topic("Les Miserables") is not None
    assert shipped_topic("Volcanoes") is None


def test_folding_and_slugs_agree():
    assert fold("Ĥarry’s") == "harry's"
    assert slug_of("  Ĥarry  ") == "harry"
    assert slug_of("...") == ""
