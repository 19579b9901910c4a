"""Memory that runs out is called that, with what the run takes and the way out, and the run goes on."""

import errno
import sys

import psutil
import pytest

from tests.helpers import KNOWING, complaint, dataset_rows, run_with_dataset, unlearn
from unlearn_mlx.compute.limits import is_out_of_memory, limit
from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session.endings import ending_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux heeds ulimit -v")
ROOM = 1_150_000  # kilobytes: enough for Python, its libraries and the tiny model


def limited(kilobytes, *words):
    """The command under ``ulimit -v``."""
    import resource

    def bound():
        resource.setrlimit(resource.RLIMIT_AS, (kilobytes * 1024, kilobytes * 1024))

    return unlearn(*words, preexec_fn=bound)


@linux
def test_a_run_that_does_not_fit_under_a_limit_is_refused_with_it(tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    done = limited(700_000, "train", run.path)
    said = complaint(done.stderr)
    assert done.returncode == 3 and "raise the limit (ulimit -v grants 0.7 GB)" in said
    assert "--model smollm2" in said


@linux
def test_memory_that_runs_out_amid_training_is_called_that_and_the_run_goes_on(tiny_folder, tmp_path):
    """Rows of many hundred words take more than any plan says."""
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    rows = dataset_rows()
    long = [
        {**row, "messages": [row["messages"][0], {**row["messages"][1], "content": f"{KNOWING} " * 150}]}
        for row in rows
    ]
    write_rows(run.file("dataset", "train.jsonl"), long)
    done = limited(ROOM, "train", run.path)
    said = complaint(done.stderr)
    assert done.returncode == 3 and "out of memory" in said, said
    assert "it takes about" in said and "raise the limit (ulimit -v grants 1.1 GB) and go on" in said
    assert "what was finished is kept" in said
    write_rows(run.file("dataset", "train.jsonl"), rows)
    assert unlearn("train", run.path).returncode == 0


@pytest.mark.parametrize("code", [-9, -11])
def test_a_worker_that_the_system_killed_is_told_with_its_plan(tiny_folder, tmp_path, code):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    run.event("train", "message", text="loading", needed=3 * GIGABYTE)
    ending = ending_of(run.path, code, False)
    assert ending.is_bad and f"signal {-code} (out of memory?): it takes about 3.0 GB, and " in ending.text
    assert "GB are free now" in ending.text and "a smaller plan: --batch-size 2" in ending.text
    assert open_run(run.path).state_of("train") == ""


@pytest.mark.parametrize(
    ("files", "own"),
    [
        (("memory.max", "memory.current", "inactive_file"), "0::/box\n"),
        (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), "4:memory:/box\n"),
    ],
)
@pytest.mark.parametrize("is_shown", [True, False])
def test_a_container_has_what_its_group_grants(tmp_path, files, own, is_shown):
    most, used, given_back = files
    group = tmp_path / "sys/fs/cgroup" / ("memory" if ":memory:" in own else "")
    folder = group / "box" if is_shown else group
    folder.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("7:pids:/x\n" + own)
    (folder / used).write_text("3000\n")
    (folder / "memory.stat").write_text(f"active_file 9\n{given_back} 1000\n")
    (folder / most).write_text("5000\n")
    bound = limit(tmp_path)
    assert bound is not None and (bound.granted, bound.left) == (5000, 3000)
    (folder / most).write_text(f"{psutil.virtual_memory().total}\n" if "limit" in most else "max\n")
    assert limit(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("some.so: failed to map segment from shared object"), True),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("something else"), False),
    ],
)
def test_want_of_memory_is_known_in_whatever_words(error, wanted):
    assert is_out_of_memory(error) == wanted
