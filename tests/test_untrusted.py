"""What others wrote: any bytes are read or refused in a line, and any text is shown and does nothing."""

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.evaluated import USUAL, evaluation_of, open_probe
from tests.faults.fuzz import PARSERS, fault_with, fuzz
from tests.faults.surroundings import prepare
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.arrays import read_arrays
from unlearn_mlx.text.printable import as_json, one_line, printable
from unlearn_mlx.topics import checked_name, slug_of

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_subnormal=False)
    | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", PARSERS)
@FEW
@given(
    data=some.binary(max_size=300) | some.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_read_or_refused_in_a_line(tmp_path, name, data):
    assert not fault_with(PARSERS[name], data, tmp_path)


JSON_PARSERS = [name for name, parser in PARSERS.items() if parser.file.endswith((".json", ".jsonl"))]


@pytest.mark.parametrize("name", JSON_PARSERS)
@FEW
@given(value=VALUES, place=some.integers(0, 9))
def test_any_json_is_read_or_refused_in_a_line(tmp_path, name, value, place):
    """Whole, and as the value of one of the fields."""
    parser = PARSERS[name]
    assert not fault_with(parser, json.dumps(value).encode(), tmp_path)
    row = json.loads(parser.seed.splitlines()[0])
    row[list(row)[place % len(row)]] = value
    assert not fault_with(parser, json.dumps(row).encode(), tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_what_was_changed_at_random_is_read_or_refused_in_a_line(tmp_path, name):
    assert not fuzz(name, 60, tmp_path, seed=1)


def header(**entry):
    data = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()
    return struct.pack("<Q", len(data)) + data + b"\x00" * 4


@pytest.mark.parametrize(
    "data",
    [
        header(shape=[2**60]),
        header(shape=[2**30, 2**30], data_offsets=[0, 2**62]),
        header(shape=[-1]),
        header(shape=[1.0]),
        header(shape=[True]),
        header(shape=[1] * 1000),
        header(data_offsets=[4, 0]),
        header(data_offsets=[0, 8], shape=[2]),
        header(dtype="F33"),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        b"",
        b"\x01",
    ],
    ids=range(14),
)
def test_a_header_that_claims_what_is_not_there_is_refused_before_it_is_believed(tmp_path, data):
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="header"):
        read_arrays(path)
    path.write_bytes(header())
    assert read_arrays(path)["a"].shape == (1,)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_a_file_in_utf_16_is_called_that(tmp_path, mark):
    for name in ("questions", "topic", "manifest"):
        parser = PARSERS[name]
        path = tmp_path / parser.file
        path.write_bytes(
            mark + parser.seed.decode().encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
        )
        with pytest.raises(UserError, match="UTF-16, save it as UTF-8"):
            parser.read(path)


def test_files_that_were_edited_by_hand_may_have_a_mark_and_line_separators(tmp_path):
    for name in ("questions", "topic", "manifest", "edits"):
        parser = PARSERS[name]
        path = tmp_path / parser.file
        path.write_bytes(b"\xef\xbb\xbf" + parser.seed.replace(b"\n", b"\r\n"))
        parser.read(path)
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "q", "question": "Who\u2028is\u2029it\u0085?"}\n{"id": "r", "question": "?"}')
    first, second = PARSERS["questions"].read(path)
    assert first.question == "Who\u2028is\u2029it\u0085?" and second.id == "r"


def test_curly_quotes_are_called_that(tmp_path):
    for name, text in (("questions", "{“id”: “q”}"), ("topic", "name = “Owls”")):
        parser = PARSERS[name]
        path = tmp_path / parser.file
        path.write_text(text)
        with pytest.raises(UserError, match="curly quotes"):
            parser.read(path)


# As topic, question, answer and error: markup of a shell, Rich, Textual, HTML, Markdown and LaTeX, codes of a
# terminal, directions, joiners in the wrong places, and marks without end.
HOSTILE = [
    "../../etc/passwd",
    "$(touch here); `touch here` && touch here",
    "[bold]rich[/bold] [/] [link=http://a]x[/link]",
    "[@click=app.quit]textual[/]",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "**md** [a](javascript:alert(1)) :red[x] $x^2$ \\input{a}",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "\u202egnp.exe\u202c \u2066a\u2069 \u200bzero\ufeffwidth\u2060",
    "a\u200db \u200dc\u200c",
    "e" + "\u0301" * 10_000,
    "{{ 7 * 7 }} {% raw %} %s %(x)s {0}",
    "\ud83d half",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_rules_nothing(text):
    assert all(c.isprintable() or c == "\n" for c in printable(text))
    assert "\n" not in one_line(text + "\n" + text)
    assert json.loads(as_json({"a": text})) == {"a": text}
    assert not set(slug_of(text)) & set("/\\.:$`;&|<> \x00")
    try:
        assert "\n" not in checked_name(text)
    except UserError as error:
        assert str(error).isprintable()


def test_hostile_text_is_shown_as_typed_by_every_command_that_shows(
    tmp_path, tiny_folder, capsys, monkeypatch
):
    prepare(tmp_path, tiny_folder)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "harry-potter"
    probes = [
        open_probe(f"p{number}", [text], [text], "Hogwarts", question=text)
        for number, text in enumerate(HOSTILE)
    ]
    evaluation = evaluation_of(*USUAL)
    evaluation["probes"] += probes
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    for words in (["show", str(run)], ["show", str(run), "--json"], ["judge", str(run), "--json"], ["runs"]):
        assert main(words) == 0
        shown = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)
    assert main(["show", "[/] $(touch here) <b>"]) == 2
    assert "[/]" not in capsys.readouterr().err or not (tmp_path / "here").exists()


MEANT = ["👩‍💻 👨‍👩‍👧 🏳️‍🌈 🏴‍☠️ ❤️‍🔥", "می‌خواهم", "क्‍ष श्री‌मान", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]


@pytest.mark.parametrize("text", MEANT)
def test_what_joins_letters_and_emoji_stays(text):
    assert printable(text) == text == one_line(text)


@pytest.mark.parametrize(
    "text", ["a\u200db", "\u200d", "x\u200c", "👩\u200dx", "\U000e0041\U000e007f", "\u200d\u200d"]
)
def test_what_only_hides_something_is_a_blank(text):
    assert all(c.isprintable() for c in printable(text))
