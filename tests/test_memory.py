"""How much memory there is, and what a model may have and keep of it."""

import mlx.core as mx
import pytest

from unlearn_mlx.compute import memory
from unlearn_mlx.compute.device import Device, current_device, gpu_device
from unlearn_mlx.compute.memory import GIGABYTE, bound_cache, free_bytes, kept_bytes, mac_memory, wired

MAC = Device("metal", "Apple M1", mac_memory(16), 8)
CARD = Device("cuda", "Card", 4 * GIGABYTE, 8)


def on(device, monkeypatch):
    monkeypatch.setattr(memory, "current_device", lambda: device)


def test_a_card_has_its_own_memory_and_a_mac_what_metal_grants():
    # As mlx.core.device_info tells them, of a machine with 24 GB.
    cuda = {"device_name": "NVIDIA T1000", "total_memory": 4 * GIGABYTE, "free_memory": 3 * GIGABYTE}
    metal = {"device_name": "Apple M1", "max_recommended_working_set_size": 11, "memory_size": 16}
    assert gpu_device(cuda, False, 24 * GIGABYTE, 8) == Device("cuda", "NVIDIA T1000", 4 * GIGABYTE, 8)
    assert gpu_device(metal, True, 24 * GIGABYTE, 8) == Device("metal", "Apple M1", 11, 8)
    assert gpu_device({}, True, 24 * GIGABYTE, 8).memory_bytes == 24 * GIGABYTE


def test_what_other_programs_have_of_a_card_is_not_free(monkeypatch):
    on(CARD, monkeypatch)
    monkeypatch.setattr(mx, "get_active_memory", lambda: GIGABYTE)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 7)
    monkeypatch.setattr(mx, "device_info", lambda: {"free_memory": GIGABYTE})
    assert free_bytes() == GIGABYTE + 7
    monkeypatch.setattr(mx, "device_info", lambda: {"free_memory": 9 * GIGABYTE})
    assert free_bytes() == 3 * GIGABYTE


def test_a_gpu_keeps_a_bounded_share_of_freed_arrays(monkeypatch):
    bounds = []
    monkeypatch.setattr(mx, "set_cache_limit", bounds.append)
    bound_cache()
    on(MAC, monkeypatch)
    bound_cache()
    assert bounds[-1] == kept_bytes(MAC) == mac_memory(16) // 8
    assert len(bounds) == 1 + current_device().is_gpu


@pytest.mark.parametrize("device", [MAC, CARD, Device("cpu", "here", 1, 1)])
def test_metal_alone_is_told_what_to_keep_resident_and_only_while_a_model_works(monkeypatch, device):
    limits = [0]

    def set_wired_limit(limit):
        limits.append(limit)
        return limits[-2]

    on(device, monkeypatch)
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    with pytest.raises(ZeroDivisionError), wired():
        assert limits[-1] == (MAC.memory_bytes if device is MAC else 0)
        raise ZeroDivisionError
    assert limits == ([0, MAC.memory_bytes, 0] if device is MAC else [0])
