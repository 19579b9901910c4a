"""A few kills, of the many that ``python -m tests.faults kills`` does."""

from tests.faults.kills import kill


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, tiny_folder):
    found = kill(2, worker=False, folder=tmp_path, model=tiny_folder)
    assert not found.faults, "\n".join(found.faults)
    assert len(found.kills) == 2 and found.reads > 100
