"""What a worker's end says, where Metal ended it, and that a Mac stays awake while one works."""

import subprocess
import sys
import time

import pytest

from unlearn_mlx.compute.awake import kept_awake
from unlearn_mlx.session import processes
from unlearn_mlx.session.endings import GPU_COMPLAINTS, RELAXED, cut_off_by, ending_of

ABORTED = "libc++abi: terminating due to uncaught exception of type std::runtime_error: "
FAILED = f"{ABORTED}[METAL] Command buffer execution failed: "
# As macOS writes them.
COMPLAINTS = {
    "Impacting Interactivity": f"{FAILED}Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    "GPU Timeout": f"{FAILED}Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    "OutOfMemory": f"{FAILED}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "Resource limit": "RuntimeError: [metal::malloc] Resource limit (499000) exceeded.",
}
WAYS_OUT = {
    "Impacting Interactivity": ("display sleep", RELAXED),
    "GPU Timeout": (RELAXED, "--batch-size"),
    "OutOfMemory": ("Close other programs", "--model llama3.2-1b"),
    "Resource limit": ("Go on", "--batch-size"),
}


@pytest.fixture
def dying_worker(tmp_path, monkeypatch):
    """Workers that write a line to their log and are ended as Metal ends a process."""

    def with_last_line(line):
        (tmp_path / "dying_worker.py").write_text(
            f"import os, sys\nprint({line!r}, file=sys.stderr, flush=True)\nos.abort()\n"
        )
        monkeypatch.setattr(processes, "WORKER", "dying_worker")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return with_last_line


def end_of_worker(run):
    workers = processes.Workers()
    workers.start(run)
    while workers.is_working(run):
        time.sleep(0.01)
    return workers.new_endings()[run.resolve()]


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_what_metal_ended_a_worker_for_is_told_with_its_own_way_out(tmp_path, dying_worker, complaint):
    run = tmp_path / "run"
    run.mkdir()
    dying_worker(COMPLAINTS[complaint])
    ending = end_of_worker(run)
    assert ending.is_bad and ending.text == f"The worker ended: {GPU_COMPLAINTS[complaint]}."
    assert all(way in ending.text for way in WAYS_OUT[complaint])
    assert cut_off_by(run, 0.0) == GPU_COMPLAINTS[complaint]


def test_a_worker_is_not_blamed_for_what_an_earlier_one_ended_of(tmp_path, dying_worker):
    run = tmp_path / "run"
    run.mkdir()
    dying_worker(COMPLAINTS["GPU Timeout"])
    end_of_worker(run)
    dying_worker("something else")
    assert end_of_worker(run).text == "The worker was killed by signal 6: something else"
    (run / "worker.log").write_text("")
    said = ending_of(run, -9, False).text
    assert said.startswith("The worker was killed by signal 9 (out of memory?): ") and "GB are free" in said


def test_a_mac_is_kept_awake_while_work_lasts_but_not_its_display(tmp_path, monkeypatch):
    told = tmp_path / "told"
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "platform", "darwin")
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **options: started.append(popen(*given, **options)) or started[-1]
    )
    with kept_awake():
        assert started[0].poll() is None
        command = started[0].args
    assert started[0].poll() is not None
    assert command[:3] == [str(program), "-is", "-w"] and "d" not in command[1]


def test_nothing_keeps_another_system_awake(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with kept_awake():
        pass
