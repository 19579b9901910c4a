"""What ``unlearn doctor`` looks at: chip, memory, wired limit, macOS, mlx, disk, cache; and what to do."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import psutil

from unlearn_mlx.compute.cpu_blas import fast_blas_is_loaded
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.models.embedded import WAY_TO_IT, embedded_is_here
from unlearn_mlx.models.hub import cached_folder, free_bytes, hub_cache, lack
from unlearn_mlx.models.registry import NAMED_MODELS, default_model
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.run import package_versions

OLDEST_MACOS = 14  # mlx's wheels ask for it
INTEL = "mlx needs Apple silicon, and a Python that is no Intel build"
LEAST_FREE = 6 * GIGABYTE  # llama3, and a run


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice`` is empty where nothing is wrong."""

    name: str
    text: str
    advice: str = ""


def findings() -> list[Finding]:
    """All findings on this machine, in the order in which they matter."""
    try:
        device = current_device()
    except ImportError as error:
        return [without_mlx(sys.platform, platform.machine(), error)]
    ram = psutil.virtual_memory()
    found = [_chip(device), memory(ram.total, ram.available, device)]
    if sys.platform == "darwin":
        limit = _system_number("iogpu.wired_limit_mb")
        found += [wired_limit(limit, ram.total, device), macos(platform.mac_ver()[0])]
    elif not device.is_gpu:
        found.append(_blas())
    versions = package_versions()
    missing = [package for package, version in versions.items() if version == "missing"]
    return [
        *found,
        _model(device),
        Finding(
            "versions",
            ", ".join(f"{package} {version}" for package, version in versions.items()),
            f"{', '.join(missing)} is missing: run 'uv sync'" if missing else "",
        ),
        _disk(),
        _cache(),
        *_macs(),
    ]


def without_mlx(system: str, machine: str, error: ImportError) -> Finding:
    """Why mlx cannot be loaded, where it cannot."""
    text = f"cannot be loaded: {' '.join(str(error).split())[:200]}"
    if system == "darwin" and machine != "arm64":
        return Finding("mlx", text, INTEL)
    return Finding("mlx", text, "run 'uv sync'")


def _model(device: Device) -> Finding:
    name, reason = default_model(device)
    is_missing = name == "smollm2" and not embedded_is_here(cache_folder())
    return Finding("model", f"{name}: {reason}", f"not installed: {WAY_TO_IT}" if is_missing else "")


def _chip(device: Device) -> Finding:
    text = f"{device.backend} ({device.name}), {device.cores} cores"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Finding("chip", text, INTEL)
    if sys.platform == "darwin" and not device.is_gpu:
        return Finding("chip", text, "Metal is not there: are you in a virtual machine, or over ssh?")
    return Finding("chip", text)


def memory(total_bytes: int, available_bytes: int, device: Device) -> Finding:
    """Whether the model that this machine gets has room beside what else runs."""
    text = f"{total_bytes / GIGABYTE:.0f} GB, {available_bytes / GIGABYTE:.0f} GB free"
    if device.is_gpu:
        text += f"; {device.memory_bytes / GIGABYTE:.0f} GB for the GPU"
    name, _ = default_model(device)
    need = NAMED_MODELS[name].memory_bytes
    if available_bytes < need:
        other = "" if name == "smollm2" else ", or take '--model smollm2'"
        return Finding("memory", text, f"close other programs: {name} needs {need // GIGABYTE} GB{other}")
    return Finding("memory", text)


def wired_limit(limit_mb: int | None, total_bytes: int, device: Device) -> Finding:
    """How much memory macOS lets the GPU keep. 0 is the system's own choice, two thirds to three quarters."""
    need = NAMED_MODELS["llama3"].memory_bytes
    text = "the system's own" if not limit_mb else f"{limit_mb / 1024:.0f} GB"
    enough = total_bytes - 4 * GIGABYTE
    if device.memory_bytes < need <= enough:
        wanted = need // 2**20
        return Finding(
            "wired limit",
            text,
            f"llama3 needs {need // GIGABYTE} GB: 'sudo sysctl iogpu.wired_limit_mb={wanted}' grants it",
        )
    if limit_mb and limit_mb * 2**20 > total_bytes - 2 * GIGABYTE:
        return Finding("wired limit", text, "that starves the system: 'sudo sysctl iogpu.wired_limit_mb=0'")
    return Finding("wired limit", text)


def macos(version: str) -> Finding:
    """Whether mlx runs on this macOS."""
    major = version.split(".")[0]
    if major.isdecimal() and int(major) < OLDEST_MACOS:
        return Finding("macOS", version, f"mlx needs macOS {OLDEST_MACOS} or newer: update it")
    return Finding("macOS", version)


def _blas() -> Finding:
    if fast_blas_is_loaded():
        return Finding("BLAS", "OpenBLAS")
    return Finding("BLAS", "reference", "a hundred times slower: run 'uv sync'")


def _disk() -> Finding:
    free = free_bytes(hub_cache())
    text = f"{free / GIGABYTE:.0f} GB free at {hub_cache()}"
    if free < LEAST_FREE:
        return Finding("disk", text, "llama3 and a run need 6 GB: make room, or set HF_HOME to another disk")
    return Finding("disk", text)


def _cache() -> Finding:
    folder = cache_folder()
    halves = []
    for model in NAMED_MODELS.values():
        cached = cached_folder(model.repository, model.revision) if model.repository else None
        if cached is not None and lack(cached):
            halves.append(model.name)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding(
            "cache", str(folder), "it cannot be written: mend its permissions, or set UNLEARN_CACHE"
        )
    advice = f"half fetched: 'unlearn models pull {halves[0]}' goes on" if halves else ""
    return Finding("cache", str(folder), advice)


def _macs() -> list[Finding]:
    """What llama3 takes on Macs of several sizes, by the planner."""
    from unlearn_mlx.compute.planner import mac_table

    found = []
    for row in mac_table():
        peak = max(row[part] for part in ("generation", "training", "evaluation")) / GIGABYTE
        fits = f"--preset {row['preset']}" if row["preset"] else "does not fit: --model smollm2"
        granted = row["for_the_gpu"] / GIGABYTE
        text = f"on a Mac of {row['gigabytes']:2d} GB: {peak:.1f} of {granted:.1f} GB, {fits}"
        found.append(Finding("llama3", text))
    return found


def _system_number(name: str) -> int | None:
    try:
        asked = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
        return int(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
