"""The benchmarks run: a metric that nobody can make again is none."""

import json
import subprocess
import sys

from benchmarks.side_by_side import ROOT


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_chat_is_measured_and_written_for_others(tmp_path):
    done = bench("chat", "--quick", "--share", str(tmp_path / "shared.json"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert json.loads((tmp_path / "shared.json").read_text()) == told
    assert told["repeats"] == 1
    assert {"mlx", "mlx-lm"} <= told["machine"]["versions"].keys()
    assert told["chat"]["seconds"]["one column"] > 0
    assert told["chat"]["toggle_milliseconds"] > 0


def test_an_unknown_benchmark_is_named():
    refused = bench("speed-of-light")
    assert refused.returncode == 2 and "speed-of-light" in refused.stderr
