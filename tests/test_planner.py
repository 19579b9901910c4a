"""What a run will take, said before it starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_mlx.cli.doctor import Finding, macos, memory, wired_limit, without_mlx
from unlearn_mlx.compute import planner
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.memory import GIGABYTE, bound_cache, mac_memory
from unlearn_mlx.compute.planner import mac_table, plan, preset_for, shape_from, shape_of
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.models.registry import NAMED_MODELS, default_model, resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.sft.loss import CHUNK

ROOT = Path(__file__).parents[1]
CPU = Device("cpu", "here", 24 * GIGABYTE, 2)
STANDARD = make_settings("standard")


def mac(gigabytes):
    return Device("metal", "Apple M", mac_memory(gigabytes), 8)


@pytest.fixture(scope="module")
def smollm2():
    return shape_of(resolve_model("smollm2").folder)


def test_the_shape_has_the_models_weights(smollm2):
    assert smollm2.parameters == pytest.approx(134.5e6, rel=0.01)
    assert smollm2.heads == 9 and smollm2.key_values == 192


def test_a_model_that_sees_pictures_is_planned_by_its_text_part(smollm2):
    folder = resolve_model("smollm2").folder
    text = read_json(folder / "config.json")
    nested = {"model_type": "gemma3", "text_config": text}
    assert shape_from(nested, smollm2.file_bytes) == smollm2


@pytest.mark.parametrize("configuration", [{}, {"n_embd": 768}, {"model_type": "x", "hidden_size": "64"}])
def test_a_shape_that_is_not_known_is_said(configuration):
    with pytest.raises(UserError, match="no plan"):
        shape_from(configuration, 0)


@pytest.mark.skipif(current_device().is_gpu, reason="the plan is for weights in float32")
def test_the_plan_is_within_15_percent_of_mlxs_count_on_a_shape_it_was_not_fitted_to():
    # In a process of its own, whose memory no other model takes part in.
    command = [sys.executable, "-m", "benchmarks.planner", "held out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["held out"]
    for name in ("weights", "generation", "training", "evaluation"):
        measured, planned = parts[name]
        assert planned == pytest.approx(measured, rel=0.15), name


def test_larger_settings_take_more(smollm2):
    plain = plan(smollm2, STANDARD, CPU, 1e11)
    more = plan(smollm2, make_settings("standard", batch_size=32, answer_tokens=512, rank=64), CPU, 1e11)
    assert more.training > plain.training and more.generation > plain.generation
    assert plan(smollm2, make_settings("thorough"), CPU, 1e11).memory == plain.memory
    assert sum(plan(smollm2, STANDARD, CPU, 2e11).seconds.values()) < sum(plain.seconds.values())


def test_llama3_fits_from_16_gigabytes_on_and_each_mac_has_a_preset():
    table = {row["gigabytes"]: row for row in mac_table()}
    assert list(table) == [8, 16, 24, 32, 64]
    presets = {gigabytes: row["preset"] for gigabytes, row in table.items()}
    assert presets == {8: None, 16: "standard", 24: "standard", 32: "thorough", 64: "thorough"}
    for row in table.values():
        peak = max(row["generation"], row["training"], row["evaluation"])
        assert peak <= NAMED_MODELS["llama3"].memory_bytes, "the table of models promises no less"


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [(8, "smollm2"), (16, "llama3"), (24, "llama3"), (32, "llama3"), (64, "llama3")],
)
def test_each_mac_gets_its_model(gigabytes, name):
    assert default_model(mac(gigabytes))[0] == name


def test_what_does_not_fit_gets_no_preset(smollm2):
    planned = plan(smollm2, STANDARD, CPU, 1e11)
    assert preset_for(planned, planned.memory - 1) is None
    assert preset_for(planned, planned.memory) == "standard"
    assert preset_for(planned, 2 * planned.memory) == "thorough"


def test_the_planner_knows_the_losss_chunk():
    assert planner.LOGITS_CHUNK == CHUNK


def test_a_wired_limit_that_keeps_llama3_out_is_said():
    eight = Device("metal", "Apple M1", 7 * GIGABYTE, 8)
    assert "sudo sysctl iogpu.wired_limit_mb=10240" in wired_limit(7168, 16 * GIGABYTE, eight).advice
    assert "starves" in wired_limit(16_000, 16 * GIGABYTE, mac(16)).advice
    assert wired_limit(0, 16 * GIGABYTE, mac(16)) == Finding("wired limit", "the system's own")
    assert wired_limit(0, 8 * GIGABYTE, mac(8)).advice == "", "no limit makes it fit"


def test_an_old_macos_is_said():
    assert "update" in macos("13.6.1").advice
    assert not macos("14.0").advice and not macos("26.1").advice


def test_too_little_room_for_the_model_of_this_machine_is_said():
    assert "llama3 needs 10 GB" in memory(16 * GIGABYTE, 6 * GIGABYTE, mac(16)).advice
    assert memory(16 * GIGABYTE, 11 * GIGABYTE, mac(16)).advice == ""
    assert memory(8 * GIGABYTE, 3 * GIGABYTE, mac(8)).advice == "", "smollm2 takes two"
    assert "close other programs" in memory(8 * GIGABYTE, GIGABYTE, mac(8)).advice


def test_a_machine_without_mlx_is_told_why():
    error = ImportError("no module named mlx")
    assert "Intel" in without_mlx("darwin", "x86_64", error).advice
    assert "uv sync" in without_mlx("darwin", "arm64", error).advice


@pytest.mark.parametrize("page", ["README.md", "docs/on-a-mac.md"])
def test_the_pages_have_the_planners_figures(page):
    rows = {}
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.fullmatch(r"(\d+) GB", cells[0]):
            rows[int(match[1])] = cells
    for row in mac_table():
        cells = rows[row["gigabytes"]]
        assert cells[1] == f"{row['for_the_gpu'] / GIGABYTE:.1f} GB"
        assert (row["preset"] or "smollm2") in " ".join(cells)
        if row["preset"]:
            peak = max(row[part] for part in ("generation", "training", "evaluation"))
            assert cells[2].startswith(f"{peak / GIGABYTE:.1f} GB")


def test_a_gpu_keeps_a_bounded_share_of_freed_arrays(monkeypatch):
    bounds = []
    monkeypatch.setattr("mlx.core.set_cache_limit", bounds.append)
    bound_cache()
    monkeypatch.setattr("unlearn_mlx.compute.memory.current_device", lambda: mac(16))
    bound_cache()
    assert bounds[-1] == mac_memory(16) // 8 and len(bounds) == 1 + current_device().is_gpu
