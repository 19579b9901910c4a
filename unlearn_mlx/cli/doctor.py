"""What ``unlearn doctor`` looks at: chip, memory, wired limit, macOS, mlx, disk, cache; and what to do."""

import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from unlearn_mlx.compute.cpu_blas import fast_blas_is_loaded
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.limits import available_bytes, total_bytes
from unlearn_mlx.compute.memory import GIGABYTE, KEPT_SHARE
from unlearn_mlx.models.embedded import WAY_TO_IT, embedded_is_here
from unlearn_mlx.models.hub import cached_folder, free_bytes, hub_cache, lack
from unlearn_mlx.models.machines import macs
from unlearn_mlx.models.registry import (
    NAMED_MODELS,
    NamedModel,
    default_model,
    memory_plan,
    resolve_model,
    to_fetch,
)
from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.run import package_versions

OLDEST_MACOS = 14  # mlx's wheels ask for it
INTEL = "mlx needs Apple silicon, and a Python that is no Intel build"
RUN_BYTES = GIGABYTE  # of a run's own files, with room to spare


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
    total = int(psutil.virtual_memory().total)
    found = [_chip(device), memory(total_bytes(), available_bytes(), device)]
    if sys.platform == "darwin":
        limit = _system_number("iogpu.wired_limit_mb")
        found += [wired_limit(limit, total, device), macos(platform.mac_ver()[0])]
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
        *(Finding("plan", mac.line()) for mac in macs()),
    ]


def of_hosts(path: Path, model_name: str | None) -> list[Finding]:
    """Whether the hosts of a file can share a run of a model: versions, weights, room, and the ring's rate.

    Raises:
        UserError: for a damaged file, or where a host cannot take part at all.
    """
    from unlearn_mlx.compute.group import other_ranks
    from unlearn_mlx.session.hosts import read_hosts, started_ranks

    name = model_name or default_model()[0]
    with started_ranks(read_hosts(path)), other_ranks() as ranks:
        assert ranks is not None
        ranks.load(dict, ())
        facts = ranks.map(_facts_of_host, {}, [name] * (1 + ranks.count))
        rate = ranks.rate()
    first = facts[0]
    return [
        *(_host(number, name, each, first) for number, each in enumerate(facts)),
        Finding("ring", f"{rate / 1e6:.0f} MB a second from each rank to the next"),
    ]


def _facts_of_host(kept: Any, names: Sequence[str]) -> Generator[dict[str, Any], None, None]:
    for name in names:
        missing = to_fetch(name)
        named = NAMED_MODELS.get(name)
        yield {
            "host": socket.gethostname(),
            "missing": missing,
            "weights": "" if missing else resolve_model(name).weights_sha256,
            "free": available_bytes(),
            "need": memory_plan(named, current_device()).process_bytes if named else 0,
            "disk": free_bytes(hub_cache()),
        }


def _host(number: int, name: str, facts: dict[str, Any], first: dict[str, Any]) -> Finding:
    """What one rank's host has, held against rank 0's."""
    free, need = facts["free"] / GIGABYTE, facts["need"] / GIGABYTE
    text = f"{facts['host']}: {free:.0f} GB free, {facts['disk'] / GIGABYTE:.0f} GB of disk; {name} "
    text += "is not there" if facts["missing"] else facts["weights"][:12]
    advice = ""
    if facts["missing"]:
        advice = f"fetch {name} there, {facts['missing']}"
    elif facts["weights"] != first["weights"]:
        advice = f"its weights of {name} are not rank 0's: fetch the same on both"
    elif free < need:
        advice = f"close other programs there: {name} needs {need:.1f} GB"
    return Finding(f"rank {number}", text, advice)


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
    need = memory_plan(NAMED_MODELS[name], device).process_bytes
    if available_bytes < need:
        other = "" if name == "smollm2" else ", or take '--model smollm2'"
        return Finding("memory", text, f"close other programs: {name} needs {need / GIGABYTE:.1f} GB{other}")
    return Finding("memory", text)


def least_limit(model: NamedModel, device: Device) -> int:
    """Bytes that a GPU must be granted at the least for a run of a model, however it is computed."""
    least = memory_plan(model, replace(device, memory_bytes=0)).memory
    return math.ceil(least * KEPT_SHARE / (KEPT_SHARE - 1))


def wired_limit(limit_mb: int | None, total_bytes: int, device: Device) -> Finding:
    """How much memory macOS lets the GPU keep. 0 is the system's own choice, two thirds to three quarters."""
    need = least_limit(NAMED_MODELS["llama3"], device)
    text = "the system's own" if not limit_mb else f"{limit_mb / 1024:.0f} GB"
    enough = total_bytes - 4 * GIGABYTE
    if device.memory_bytes < need <= enough:
        wanted = math.ceil(need / 2**20)
        return Finding(
            "wired limit",
            text,
            f"llama3 needs {need / GIGABYTE:.1f} GB: 'sudo sysctl iogpu.wired_limit_mb={wanted}' grants it",
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
    name, _ = default_model()
    need = NAMED_MODELS[name].download_bytes + RUN_BYTES
    if free < need:
        return Finding(
            "disk",
            text,
            f"{name} and a run need {need / GIGABYTE:.0f} GB: make room, or set HF_HOME to another disk",
        )
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


def _system_number(name: str) -> int | None:
    try:
        asked = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
        return int(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
