import json
import os
import subprocess
import sys

import pytest

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.runs.files import (
    append_rows,
    read_journal,
    read_json,
    read_rows,
    write_atomically,
    write_json,
    write_rows,
)
from unlearn_mlx.runs.records import ChatRow, Question, Record, read_records


class Numbered(Record):
    id: int


AWKWARD = ["plain", "two\nlines", 'a "quote"', "\u2028 and \u2029 and \x85", "\x1c\x0b", "ça, 日本, 🧙", ""]


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": number, "text": text} for number, text in enumerate(AWKWARD)]
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert read_journal(path) == rows
    assert len(path.read_bytes().splitlines()) == len(rows)


def test_appended_rows_follow_the_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    for number, text in enumerate(AWKWARD):
        append_rows(path, [{"id": number, "text": text}])
    assert [row["text"] for row in read_rows(path)] == AWKWARD


@pytest.mark.parametrize("torn", [b'{"id": 2, "te', b"\xe2\x82", b"garbage", b"[1, 2"])
def test_a_torn_last_line_is_left_out_and_swallows_nothing(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    append_rows(path, [{"id": 1}])
    with path.open("ab") as file:
        file.write(torn)
    assert read_journal(path) == [{"id": 1}]
    append_rows(path, [{"id": 3}])
    assert read_journal(path) == [{"id": 1}, {"id": 3}]


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    assert read_journal(tmp_path / "none.jsonl") == []


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from unlearn_mlx.runs.files import write_atomically\n"
        "from unlearn_mlx.errors import EnvironmentCannot\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: write_atomically(Path(sys.argv[1]), 'new' * 5000)\n"
        "except EnvironmentCannot as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert f"cannot write {path}" in done.stdout
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(EnvironmentCannot, match="the disk is full .* free some space") as caught:
        append_rows(path, [{"id": 1}])
    assert caught.value.exit_code == 3


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(EnvironmentCannot, match="cannot write"):
        write_atomically(tmp_path / "file" / "below.txt", "text")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ('{"id": 1}\n{"id": \n', 2),
        ('{"id": 1}\n\n[1]\n', 3),
        ('{"id": 1}\n{"other": 1}\n', 2),
        ("null\n", 1),
        ('"id"\n', 1),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, content, number):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=f"rows.jsonl, line {number}: ") as caught:
        read_records(path, Numbered)
    assert "\n" not in str(caught.value)
    assert path.read_text() == content


DAMAGED_HERE = pytest.mark.parametrize(
    ("text", "reason"), [("\\ud83d", "half a character"), ("word " * 9000, "9000 words, more than 1000")]
)


@DAMAGED_HERE
@pytest.mark.parametrize(
    "row", ['{"id": "q", "question": "%s"}', '{"messages": [{"role": "user", "content": "%s"}]}']
)
def test_a_text_that_no_model_should_be_given_is_named_by_its_line(tmp_path, row, text, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n" + row % text + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 3: .*{reason}") as caught:
        read_records(path, Question if "question" in row else ChatRow)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_an_emoji_that_is_written_in_escapes_is_whole(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "\\ud83d\\ude00", "question": "?"}\n')
    (read,) = read_records(tmp_path / "rows.jsonl", Question)
    assert read.id == "\U0001f600"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_damaged_json_is_one_clear_line(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*file\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_text_are_one_clear_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00" * 10)
    with pytest.raises(UserError, match=r"cannot read .*rows\.jsonl"):
        read_rows(path)


def test_json_is_written_to_be_read(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Les Misérables", "list": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Les Misérables" in text
    assert text.count("\n") > 3
    assert json.loads(text)["list"] == [1]


def test_half_a_character_in_a_fields_name_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "\\ud83d": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1: .*half a character"):
        read_records(path, Numbered)
