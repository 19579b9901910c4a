"""Somebody who reads every file of a run all the while: none may ever be half written."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from unlearn_mlx.runs.files import BUILDING, numbered_rows, read_journal, read_json
from unlearn_mlx.runs.records import read_events
from unlearn_mlx.topics import load_topic

LOOK = 0.005  # seconds between two looks
APPENDED = re.compile(r"(.*/)?(events|journal/.*)\.jsonl")  # what grows by lines


class Watcher:
    """As long as it is open, all files of a folder are read again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK):
            for path in list(self.folder.rglob("*")):
                name = str(path.relative_to(self.folder))
                if BUILDING in name or name.startswith(".") or not path.is_file():
                    continue
                try:
                    read_whole(path, bool(APPENDED.fullmatch(name)))
                except FileNotFoundError:
                    continue
                except Exception as error:
                    if path.exists():
                        self.faults.append(f"{name}: {type(error).__name__}: {error}"[:300])
                self.reads += 1


def read_whole(path: Path, is_appended: bool = False) -> None:
    """Read a file to its end as what its name says.

    Raises:
        Exception: where it is no such file, or not whole.
    """
    if is_appended:
        # A line that a kill cut off is left out by every reader; all others must be what they are to be.
        read_events(path) if path.name == "events.jsonl" else read_journal(path)
        return
    readers: dict[str, Callable[[Path], object]] = {
        ".json": read_json,
        ".jsonl": lambda path: list(numbered_rows(path)),
        ".toml": load_topic,
        ".safetensors": _read_arrays,
        ".html": _read_page,
    }
    if reader := readers.get(path.suffix):
        reader(path)


def _read_arrays(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (no dictionary)
            file.get_tensor(name)


def _read_page(path: Path) -> None:
    if not path.read_bytes().rstrip().endswith(b"</html>"):
        raise ValueError("the page is cut off")
