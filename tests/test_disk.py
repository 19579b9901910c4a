"""Some of the operations of a disk fail, of all that ``python -m tests.faults disk`` lets fail."""

import errno

import pytest

from tests.faults.disk import all_stages, faults_of, works
from tests.faults.failing_disk import ERRORS, FailingDisk
from tests.helpers import files_of
from tests.runs_with_results import finished_run
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.runs.files import append_rows, read_rows, write_atomically


@pytest.mark.parametrize("error", ERRORS)
def test_each_operation_of_a_write_fails_and_what_was_there_stays(tmp_path, error):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")
    with FailingDisk(tmp_path) as disk:
        write_atomically(path, "old")
    assert disk.count >= 4  # create, write, fsync, rename
    for number in range(disk.count):
        with FailingDisk(tmp_path, number, error), pytest.raises(EnvironmentCannot) as caught:
            write_atomically(path, "new")
        assert "\n" not in str(caught.value)
        assert files_of(tmp_path) == {"deep/file.txt": b"old"}


def test_rows_that_cannot_be_appended_whole_are_not_appended_in_part(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"id": 1}])
    for number in range(3):
        with (
            FailingDisk(tmp_path, number, errno.ENOSPC),
            pytest.raises(EnvironmentCannot, match="disk is full .* free some space"),
        ):
            append_rows(path, [{"id": 2}, {"id": 3}])
        assert read_rows(path) == [{"id": 1}]


def test_edits_and_exports_survive_a_failing_disk(tmp_path, tiny_folder):
    finished = finished_run(tmp_path / "finished", tiny_folder)
    for number, work in enumerate(works(tiny_folder, finished.path)):
        if work.name in ("an edit", "an edit undone"):
            count, faults = faults_of(work, tmp_path / str(number))
            assert count >= 3 and not faults, "\n".join(faults)
        elif work.name in ("export as adapter", "export as hf"):
            _, faults = faults_of(work, tmp_path / str(number), most=3)
            assert not faults, "\n".join(faults)


def test_stages_survive_a_failing_disk(tmp_path, tiny_folder):
    count, faults = faults_of(all_stages(tiny_folder), tmp_path, most=2)
    assert count >= 2 and not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ["/dev/null", "link"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, name):
    path = tmp_path / name
    if name == "link":
        path.symlink_to("/dev/null")
    with pytest.raises(EnvironmentCannot, match="no regular file"):
        write_atomically(path, "text")
    assert path.is_char_device()
