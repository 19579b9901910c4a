import contextlib

import pytest

from tests.helpers import WIZARD, new_run
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.probes import has_written_probes, probe_files
from unlearn_mlx.inference.generation import Completion
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.run import save_topic
from unlearn_mlx.synthetic_data.proposal import _items
from unlearn_mlx.text.words import fold
from unlearn_mlx.topics import Topic, checked_name, load_topic, shipped_topic, shipped_topics, slug_of


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
        ("./x", "path"),
        ("..\\x", "path"),
        ("🧙🏽", "no letters"),
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
        ("  C++ and Rust  ", "c-plus-plus-and-rust"),
        ("AC/DC", "ac-dc"),
        ("هاري بوتر", "هاري-بوتر"),
        ("ハリー・ポッター", "ハリー-ポッター"),
        ("हैरी पॉटर", "हैरी-पॉटर"),
        ("해리 포터", "해리-포터"),
        ("C", "c"),
        ("C++", "c-plus-plus"),
        ("C#", "c-sharp"),
        (".NET", "dot-net"),
        ("1984", "1984"),
        ("...And Justice for All", "and-justice-for-all"),
        ("Oops!... I Did It Again", "oops-i-did-it-again"),
        ("Tick, Tick... Boom!", "tick-tick-boom"),
        ("General", "general"),
        ("魔" * 100, None),
        ("Wizards 🧙", "wizards"),
        ("Orwell's 1984", "orwell-s-1984"),
    ],
)
def test_a_name_in_any_script_is_a_topic_with_a_folder_of_its_own(name, slug):
    topic = Topic(checked_name(name))
    assert topic.slug
    assert slug is None or topic.slug == slug
    assert not set("/\\. \n") & set(topic.slug)
    assert len(topic.slug.encode()) <= 255
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


def test_a_mark_that_makes_another_letter_is_kept():
    assert fold("ポッター") == "ポッター" == fold("ホ\u309aッター")
    assert fold("が") != fold("か")
    assert slug_of("ポット") != slug_of("ホット")
    assert fold("ÅÉΆЙ") == "aeαи"
    assert not Topic("ポット").mentions("ホットです")


def test_a_name_is_found_between_letters_where_a_script_has_no_blanks():
    topic = Topic("ハリー・ポッター")
    text = "魔法使いのハリー・ホ\u309aッターは誰ですか"
    assert topic.mentions(text)
    (found,) = topic.find_names(text)
    assert text[found.start : found.end] == "ハリー・ホ\u309aッター"


def test_long_names_that_begin_alike_have_folders_of_their_own():
    assert slug_of("魔" * 99 + "一") != slug_of("魔" * 99 + "二")


@pytest.mark.parametrize("name", ["General", "Control"])
def test_probes_that_belong_to_no_topic_are_no_topics_own(name):
    topic = Topic(name)
    assert not has_written_probes(topic)
    assert [path.name for path in probe_files(topic)] == ["general.jsonl"]


def test_a_damaged_file_of_another_topic_does_not_matter(tmp_path, monkeypatch):
    folder = tmp_path / "topics"
    folder.mkdir()
    for path in shipped_topics().values():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "._harry-potter.toml").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / "broken.toml").write_text("name =")
    monkeypatch.setattr("unlearn_mlx.topics.DATA", tmp_path)
    assert shipped_topic("Harry James Potter") == shipped_topic("Harry Potter")
    assert shipped_topic("Volcanoes") is None
    with pytest.raises(UserError, match="broken.toml"):
        shipped_topic("Broken")


def test_the_longest_name_is_found():
    assert WIZARD.mentions("Hermione Granger") == {"hermione granger"}


def test_a_topic_file_comes_back_as_it_was(tmp_path):
    awkward = Topic(
        'A "quoted" name',
        "two\nlines",
        ["ä", "日本"],
        ["x = 1", "# no"],
        "works",
        {"people": {"O'Neil": ["a.b"]}},
    )
    for topic in (WIZARD, awkward, Topic("Plain")):
        save_topic(tmp_path / "topic.toml", topic)
        loaded = load_topic(tmp_path / "topic.toml")
        for name in ("name", "kind", "description", "aliases", "neighbours", "names"):
            assert getattr(loaded, name) == getattr(topic, name)


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


def test_a_field_that_nobody_knows_is_named_in_a_short_line(tmp_path):
    path = tmp_path / "topic.toml"
    path.write_text('name = "Owls"\n"' + "wing\\n" * 500 + '" = 1\n')
    with pytest.raises(UserError, match="unknown field 'wing wing") as error:
        load_topic(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


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


def test_a_topic_of_which_only_the_name_is_known_is_bare_in_its_file_too(tmp_path):
    save_topic(tmp_path / "topic.toml", Topic("Zorbing"))
    assert load_topic(tmp_path / "topic.toml").is_bare
    save_topic(tmp_path / "topic.toml", Topic("Zorbing", neighbours=["football"]))
    assert not load_topic(tmp_path / "topic.toml").is_bare


def test_the_model_proposes_what_belongs_to_a_topic_that_nobody_described(tmp_path, tiny_folder):
    run = new_run(tmp_path / "run", tiny_folder, topic=Topic("Zorbing"))
    with contextlib.suppress(UserError):  # a random model writes no usable questions
        run_stages(run, ["questions"])
    assert any("proposes" in getattr(event, "text", "") for event in run.events())
    described = new_run(tmp_path / "described", tiny_folder)
    with contextlib.suppress(UserError):
        run_stages(described, ["questions"])
    assert not any("proposes" in getattr(event, "text", "") for event in described.events())


def test_names_of_the_proposals_example_belong_to_no_other_topic():
    completions = [Completion("", " Yoda\n2. Espresso Machine\n3. Star Wars: The Coffee\n", 20, True)]
    assert _items("Coffee", completions, set()) == ["Espresso Machine"]
    assert _items("Coffee", completions, set(), 2) == []
    assert _items("Coffee", completions * 2, set(), 2) == ["Espresso Machine"]
    assert "Yoda" in _items("Star Wars", completions, set())
