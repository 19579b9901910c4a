"""Ranks of a group share a run: it is the run of one process, and none is lost with a rank."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.faults.ranks import kill, local_hosts, made
from tests.faults.small_runs import any_sentence_passes
from tests.helpers import command, complaint, run_with_dataset, unlearn, write_tiny_model
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.meeting import HOST_FILE, KEY, RANK, Place, RankLost, meet
from unlearn_mlx.compute.planner import usual_computation
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.pipeline import run_stages
from unlearn_mlx.runs.run import open_run
from unlearn_mlx.session import hosts as starting
from unlearn_mlx.session.hosts import read_hosts, started_ranks

pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="mlx has no ring here")

TRAINED = {"epochs": 1.0, "rank": 2, "batch_size": 8, "validations": 1}
ADAPTER = ("adapter", "adapters.safetensors")
SSH = "#!/bin/sh\nexec /bin/sh\n"  # reaches every host, all of which are here
TWO = '"hosts": [{"ssh": "a", "ips": ["1.2.3.4"]}, {"ssh": "b", "ips": ["1.2.3.4"]}]'


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """A folder with a run that one process has made."""
    folder = made(tmp_path_factory.mktemp("whole"), tiny_folder)
    with any_sentence_passes():
        run_stages(open_run(folder / "run"))
    return folder


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def host_file(path, *names):
    hosts = [{"ssh": name, "ips": ["127.0.0.1"], "rdma": []} for name in names]
    path.write_text(json.dumps({"backend": "ring", "envs": [], "hosts": hosts}))
    return path


def test_a_run_that_ranks_share_and_that_loses_either_has_the_bytes_of_one_process(
    whole, tiny_folder, tmp_path
):
    faults = kill(tmp_path / "killed", tiny_folder, [(2, 1, "answers"), (2, 0, "train")], whole, last=2)
    assert not faults, "\n".join(faults)


def test_a_training_that_is_stopped_lets_its_ranks_go(tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder, **{**TRAINED, "epochs": 20.0})
    with started_ranks(local_hosts(2)) as others:
        words = [sys.executable, "-m", "unlearn_mlx.pipeline", run.path, "train"]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        while not any(event.kind == "progress" for event in run.events()):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == Cancelled.exit_code and not said
        assert [each.wait(60) for each in others.processes] == [RankLost.exit_code]
    assert open_run(run.path).manifest.stages["train"].state == "cancelled"


def trained_alone(path, model_folder, part_rows):
    run = run_with_dataset(path, model_folder, **TRAINED)
    run.manifest.computation = usual_computation(current_device()).model_copy(update={"part_rows": part_rows})
    run.save_manifest()
    run_stages(run, ["train"])
    return run.file(*ADAPTER)


def test_the_command_shares_a_training_and_its_adapter_is_that_of_the_double_batch(
    tiny_folder, tmp_path, monkeypatch
):
    """With a rank here and one that ssh starts."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(starting.FIRST_PORT, str(free_port()))
    run = run_with_dataset(tmp_path / "run's", tiny_folder, **TRAINED)
    done = unlearn("train", run.path, "--hosts", host_file(tmp_path / "hosts.json", "127.0.0.1", "mac-2"))
    assert done.returncode == 0, done.stderr
    adapter = run.file(*ADAPTER)
    assert adapter.read_bytes() == trained_alone(tmp_path / "parts", tiny_folder, 4).read_bytes()
    shared, whole = (
        mx.load(str(path)) for path in (adapter, trained_alone(tmp_path / "whole", tiny_folder, None))
    )
    for name, array in whole.items():
        assert np.linalg.norm(array - shared[name]) <= 1e-5 * np.linalg.norm(array)


def test_mlx_launch_starts_ranks_too(tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder, **TRAINED)
    launch = Path(sys.executable).with_name("mlx.launch")
    words = ["-n", "2", "--backend", "ring", "--starting-port", str(free_port()), "--"]

    def launched():
        return subprocess.run(
            [launch, *words, *command("train", run.path)],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    done = launched()
    assert open_run(run.path).stage_is_done("train"), done.stderr
    assert run.file(*ADAPTER).read_bytes() == trained_alone(tmp_path / "one", tiny_folder, 4).read_bytes()
    # A run that is done needs no rank, and lets them go.
    again = launched()
    assert "unlearn: " not in again.stderr + again.stdout


def test_a_rank_with_other_weights_is_refused_by_name(tmp_path, monkeypatch):
    """As on two machines, where one path leads to other files."""
    here, there = tmp_path / "here", tmp_path / "there"
    write_tiny_model(here / "model")
    write_tiny_model(there / "model", layers=1)
    monkeypatch.chdir(here)
    run = run_with_dataset(here / "run", Path("model"), **TRAINED)
    file = tmp_path / "places.json"
    file.write_text(json.dumps([[f"127.0.0.1:{free_port()}"], [f"127.0.0.1:{free_port()}"]]))
    environment = {**os.environ, HOST_FILE: str(file)}
    other = subprocess.Popen(
        [sys.executable, "-m", starting.MODULE],
        cwd=there,
        env={**environment, RANK: "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_mlx.pipeline", run.path, "train"],
        env={**environment, RANK: "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3
    said = complaint(done.stderr)
    assert f"rank 1 ({socket.gethostname()})" in said and "its weights of model are" in said
    assert "its weights of model are" in complaint(other.communicate(timeout=60)[1])
    assert other.returncode == 3


@contextmanager
def visitor(address, *messages):
    """Somebody who comes to where the ranks meet, and says something."""
    heard = []

    def visit():
        while True:
            try:
                connected = socket.create_connection(address, 5)
                break
            except ConnectionRefusedError:
                continue
        with connected:
            for message in messages:
                connected.sendall(len(message).to_bytes(4, "big") + message)
            heard.append(connected.recv(4096).decode(errors="replace"))

    thread = threading.Thread(target=visit)
    thread.start()
    yield heard
    thread.join()


def greeting(**words):
    return json.dumps({"key": os.environ.get(KEY, ""), "rank": 1, "host": "mac-2", **words}).encode()


def test_a_rank_with_other_versions_is_refused_by_name():
    address = ("127.0.0.1", free_port())
    facts = {"unlearn-mlx": "0.0.1"}
    refused = pytest.raises(RankLost, match=r"rank 1 \(mac-2\) has unlearn-mlx 0.0.1 and rank 0 has")
    with visitor(address, greeting(facts=facts)) as heard, refused:
        meet(Place(0, 2, address))
    assert "has unlearn-mlx 0.0.1" in heard[0]


def test_a_rank_that_does_not_come_is_named_and_nobody_else_is_taken_for_it(monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    address = ("127.0.0.1", free_port())
    missing = pytest.raises(RankLost, match=rf"rank 1 did not come to 127.0.0.1:{address[1]} within 2 sec")
    with visitor(address, b'{"key": "guessed", "rank": 1, "facts": {}}') as heard, missing:
        meet(Place(0, 2, address), seconds=2)
    assert heard == [""], "it was told nothing"


def test_the_wait_for_ranks_can_be_stopped():
    with pytest.raises(Cancelled):
        meet(Place(0, 2, ("127.0.0.1", free_port())), lambda: True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"),
        ("[]", "at least 2"),
        (
            '[{"ssh": "a", "ips": ["1.2.3.4"]}, {"ssh": "-oProxyCommand=x", "ips": ["1.2.3.4"]}]',
            "'hosts.1.ssh'",
        ),
        ('[{"ssh": "a", "ips": ["1.2.3.4"]}, {"ssh": "b", "ips": []}]', "b has no IPv4 address"),
        ('[{"ssh": "a", "ips": ["1.2.3.4"]}, {"ssh": "b", "ips": ["$(x)"]}]', "b has no IPv4 address"),
        ('{"backend": "nccl", ' + TWO + "}", "'nccl'"),
        ('{"envs": ["x;y=1"], ' + TWO + "}", "'envs.0'"),
    ],
)
def test_a_host_file_that_cannot_be_is_refused_in_a_line(tmp_path, content, said):
    path = tmp_path / "hosts.json"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_hosts(path)
    assert said in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_doctor_looks_at_every_host_and_at_the_ring(tmp_path):
    done = unlearn("doctor", "--hosts", host_file(tmp_path / "hosts.json", "127.0.0.1", "127.0.0.1"))
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert lines == [["rank", "0"], ["rank", "1"], ["ring", lines[-1][1]]], done.stderr
    assert int(lines[-1][1]) > 0


def test_a_host_that_ssh_does_not_reach_is_named_with_what_ssh_says(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'ssh: Could not resolve hostname mac-2' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(starting.FIRST_PORT, str(free_port()))
    run = run_with_dataset(tmp_path / "run", tiny_folder, **TRAINED)
    done = unlearn("train", run.path, "--hosts", host_file(tmp_path / "hosts.json", "127.0.0.1", "mac-2"))
    assert done.returncode == 3
    assert "rank 1 (mac-2) cannot come: ssh: Could not resolve hostname mac-2" in complaint(done.stderr)
