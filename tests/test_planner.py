"""What a run will take, said before it starts."""

import pytest

from unlearn_mlx.config import make_settings
from unlearn_mlx.doctor import Finding, macos, wired_limit
from unlearn_mlx.language_model import planner
from unlearn_mlx.language_model.device import Device
from unlearn_mlx.language_model.downloads import GIGABYTE
from unlearn_mlx.language_model.models import NAMED_MODELS, default_model, resolve_model
from unlearn_mlx.language_model.planner import mac_memory, mac_table, plan, preset_for, shape_of
from unlearn_mlx.sft.loss import CHUNK

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


# mlx's own count by `python -m benchmarks.planner` on Linux, one CPU core.
MEASURED = {"generation": 2_071_085_928, "training": 1_452_143_688, "evaluation": 1_512_611_016}


@pytest.mark.parametrize("part", MEASURED)
def test_the_plan_is_within_15_percent_of_what_was_measured(smollm2, part):
    planned = plan(smollm2, STANDARD, CPU, 1e11)
    assert planned.weights + getattr(planned, part) == pytest.approx(MEASURED[part], rel=0.15)


def test_larger_settings_take_more(smollm2):
    plain = plan(smollm2, STANDARD, CPU, 1e11)
    more = plan(smollm2, make_settings("standard", batch_rows=32, answer_tokens=512, rank=64), CPU, 1e11)
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
