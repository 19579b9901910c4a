"""What a run will take, said before it starts."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unlearn_mlx.cli.doctor import Finding, macos, memory, wired_limit, without_mlx
from unlearn_mlx.compute import footprint
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.duration import stage_seconds
from unlearn_mlx.compute.memory import GIGABYTE, mac_memory, room_of
from unlearn_mlx.compute.model_shape import shape_from, shape_of
from unlearn_mlx.compute.planner import plan, refuse
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.chat_model import PLACES_AT_ONCE
from unlearn_mlx.models.machines import macs, preset_for
from unlearn_mlx.models.registry import NAMED_MODELS, default_model, memory_plan, resolve_model
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.sft.loss import CHUNK

ROOT = Path(__file__).parents[1]
CPU = Device("cpu", "here", 24 * GIGABYTE, 2)
STANDARD = make_settings("standard")
HELD_OUT = ["held out", "held out, deeper"]


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


@pytest.mark.skipif(current_device().is_gpu, reason="measured there by 'python -m benchmarks.planner'")
def test_the_plan_is_not_15_percent_under_mlxs_count_on_shapes_it_was_not_fitted_to():
    """With activations kept and computed twice, a step at once and in parts."""
    # In a process of its own, whose memory no other model takes part in.
    command = [sys.executable, "-m", "benchmarks.planner", *HELD_OUT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["found"]
    assert list(found) == HELD_OUT
    for name, parts in found.items():
        assert len(parts) == 7
        for part, (measured, planned) in parts.items():
            # Too little would end a run, too much only makes it smaller than it could be.
            assert measured <= 1.15 * planned, (name, part)
            assert planned <= 1.7 * measured, (name, part)


def test_larger_settings_take_more(smollm2):
    plain = plan(smollm2, STANDARD, CPU)
    more = plan(smollm2, make_settings("standard", answer_tokens=512, rank=64), CPU)
    assert more.training.total > plain.training.total and more.generation.total > plain.generation.total
    assert plan(smollm2, make_settings("thorough"), CPU).memory == plain.memory
    assert sum(stage_seconds(smollm2, STANDARD, 2e11).values()) < sum(
        stage_seconds(smollm2, STANDARD, 1e11).values()
    )


def test_a_workers_memory_is_counted(smollm2):
    alone, shared = plan(smollm2, STANDARD, CPU), plan(smollm2, STANDARD, CPU, 1)
    assert shared.memory == alone.memory and shared.everywhere == 2 * alone.everywhere
    assert alone.everywhere > alone.memory, "Python and its libraries come on top"


def test_a_run_is_computed_so_that_it_fits():
    """Smaller batches of answers, then parts of steps, then activations twice: the least that is needed."""
    shape = NAMED_MODELS["llama3"].shape
    large = plan(shape, STANDARD, mac(64))
    assert not large.reasons and large.computation.part_rows is None
    ways, least = [], None
    for granted in range(12 * 1024, int(4.5 * 1024), -64):
        device = Device("metal", "Mac", granted * 2**20, 8)
        planned = plan(shape, STANDARD, device)
        if planned.memory > room_of(device):
            with pytest.raises(EnvironmentCannot, match="take '--model smollm2'"):
                refuse(planned, "llama3", device, 2**40)
            continue
        refuse(planned, "llama3", device, 2**40)
        least = granted
        way = planned.computation
        ways.append((way.decode_batch, way.part_rows or 99, way.checkpointing))
        assert bool(planned.reasons) == (planned.memory < large.memory)
    assert ways[0] == (64, 99, False) and least < 7.5 * 1024
    assert ways[-1][2] and ways[-1][0] < 64, "on the smallest, activations are computed twice"
    assert sorted({way[0] for way in ways}, reverse=True) == list(dict.fromkeys(way[0] for way in ways))


def test_what_is_not_free_is_refused_in_words(smollm2):
    planned = plan(smollm2, STANDARD, CPU)
    refuse(planned, "smollm2", CPU, planned.process_bytes)
    with pytest.raises(EnvironmentCannot, match="0.5 GB are free: close other programs"):
        refuse(planned, "smollm2", CPU, GIGABYTE // 2)


def test_each_mac_has_its_model_and_preset_and_fits():
    found = {mac.gigabytes: (mac.model, mac.preset) for mac in macs()}
    assert found == {
        8: ("llama3.2-1b", "standard"),
        16: ("llama3", "standard"),
        24: ("llama3", "standard"),
        32: ("llama3", "standard"),
        64: ("llama3", "thorough"),
    }
    for each in macs():
        assert each.planned.memory <= room_of(mac(each.gigabytes))


@pytest.mark.parametrize(("gigabytes", "name"), [(2, "smollm2"), (4, "llama3.2-1b"), (24, "llama3")])
def test_a_card_of_any_size_gets_a_model_that_fits(gigabytes, name):
    device = Device("cuda", "Card", gigabytes * GIGABYTE, 8)
    assert default_model(device)[0] == name
    assert memory_plan(NAMED_MODELS[name], device).memory <= room_of(device)


def test_the_longer_preset_is_for_machines_that_stay_usable(smollm2):
    planned = plan(smollm2, STANDARD, CPU)
    for share, preset in ((1, "standard"), (2, "thorough")):
        assert preset_for(planned, Device("cpu", "here", share * planned.memory, 2)) == preset


def test_the_named_shapes_are_those_of_the_models(smollm2):
    assert NAMED_MODELS["smollm2"].shape == replace(smollm2, file_bytes=94_000_000)
    assert smollm2.file_bytes == pytest.approx(94_000_000, rel=0.05)
    billions = {name: model.shape.parameters / 1e9 for name, model in NAMED_MODELS.items()}
    for name, wanted in (
        ("llama3", 8.03),
        ("llama3.2-1b", 1.24),
        ("llama3.2-3b", 3.21),
        ("qwen2.5-1.5b", 1.54),
    ):
        assert billions[name] == pytest.approx(wanted, rel=0.01), name


def test_the_plan_knows_how_many_logits_exist_at_once():
    assert footprint.LOGITS_CHUNK == CHUNK and footprint.COMPARED_PLACES == PLACES_AT_ONCE


def test_a_wired_limit_that_keeps_llama3_out_is_said():
    six = Device("metal", "Apple M1", 6 * GIGABYTE, 8)
    advice = wired_limit(6144, 16 * GIGABYTE, six).advice
    wanted = int(re.search(r"'sudo sysctl iogpu.wired_limit_mb=(\d+)' grants it", advice)[1]) * 2**20
    for granted, name in ((wanted, "llama3"), (wanted - 2**21, "llama3.2-1b")):
        assert default_model(Device("metal", "Apple M1", granted, 8))[0] == name
    assert "starves" in wired_limit(16_000, 16 * GIGABYTE, mac(16)).advice
    assert wired_limit(0, 16 * GIGABYTE, mac(16)) == Finding("wired limit", "the system's own")
    assert wired_limit(0, 8 * GIGABYTE, mac(8)).advice == "", "no limit makes it fit"


def test_an_old_macos_is_said():
    assert "update" in macos("13.6.1").advice
    assert not macos("14.0").advice and not macos("26.1").advice


def test_too_little_room_for_the_model_of_this_machine_is_said():
    need = memory_plan(NAMED_MODELS["llama3"], mac(16)).memory
    told = f"llama3 needs {need / GIGABYTE:.1f} GB"
    assert told in memory(16 * GIGABYTE, 6 * GIGABYTE, mac(16)).advice
    assert memory(16 * GIGABYTE, 11 * GIGABYTE, mac(16)).advice == ""
    assert memory(8 * GIGABYTE, 4 * GIGABYTE, mac(8)).advice == ""
    assert "close other programs" in memory(8 * GIGABYTE, GIGABYTE, mac(8)).advice


def test_a_machine_without_mlx_is_told_why():
    error = ImportError("no module named mlx")
    assert "Intel" in without_mlx("darwin", "x86_64", error).advice
    assert "uv sync" in without_mlx("darwin", "arm64", error).advice
