"""Models from the hub: fetched once with progress and resume, used offline, checked, removed.

Only weights in safetensors, configuration and tokenizer are asked for by name: nothing that could run
code is fetched, and nothing is unpickled.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearn_mlx.compute.memory import GIGABYTE
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.models.hub_client import hub_failures, prepare_client, reach
from unlearn_mlx.models.hub_errors import RANGE_NOT_SATISFIABLE, hub_status
from unlearn_mlx.models.supported import refusal, unknown_architecture
from unlearn_mlx.models.unlinked import damaged_unlinked, keep_hashes
from unlearn_mlx.runs.files import read_json, sha256_of

LARGE = 64 * 2**20  # bytes from which a file is worth resuming

WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors")
WANTED = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of a hub model: from the cache where it is whole there, else downloaded.

    A download that was cut off goes on where it stopped. A pinned ``revision`` in the cache needs no
    network.

    Raises:
        UserError: for a model that cannot be used, which its small files say.
        EnvironmentCannot: without a network, or room on the disk, or the right to fetch it.
    """
    cached = cached_folder(repository, revision)
    if cached is not None and lack(cached) is None:
        return cached
    from huggingface_hub import constants, snapshot_download

    asked: dict[str, Any] = {"revision": revision, "allow_patterns": list(WANTED)}
    with hub_failures(repository, revision, ", or use '--model smollm2'"), _parts_that_fit(repository):
        prepare_client()
        if not constants.is_offline_mode():
            reach(repository, revision)
            files = _files_to_fetch(repository, asked)
            _check_room(repository, files)
            _check_small_files(repository, asked)
            for entry in files:
                if (entry.file_size or 0) >= LARGE:
                    _fetch_large(repository, entry.filename, entry.commit_hash)
        folder = Path(snapshot_download(repository, **asked))
        keep_hashes(folder)
        return folder


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """Where the cache keeps a model, whole or not; None where it has nothing of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=list(WANTED)
            )
        )
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def lack(folder: Path) -> str | None:
    """What a model folder is missing, in words; None where it is whole."""
    for needed, what in (("config.json", "configuration"), ("tokenizer*", "tokenizer")):
        if not any(folder.glob(needed)):
            return f"has no {what} ({needed})"
    weights = {path.name for path in folder.glob("model*.safetensors") if path.exists()}
    if not weights:
        return "has no model*.safetensors"
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            content = read_json(index)
            missing = set(content["weight_map"].values()) - weights
        except (UserError, KeyError, TypeError, AttributeError):
            return "has a damaged model.safetensors.index.json"
        if missing:
            return f"lacks {len(missing)} weight file{'s' * (len(missing) > 1)}"
    return None


def damaged_files(folder: Path) -> list[str]:
    """The files of a cached model whose content is not what their name in the cache says.

    The cache names a blob by its SHA-256, or by git's SHA-1 where the hub keeps the file in git; where it
    has no links, the hashes were noted when the model was fetched.
    """
    damaged = damaged_unlinked(folder)
    for path in sorted(path for path in folder.iterdir() if path.is_symlink()):
        blob = path.resolve()
        if len(blob.name) == 64:
            right = sha256_of(blob) == blob.name
        elif len(blob.name) == 40:
            data = blob.read_bytes()
            header = f"blob {len(data)}\0".encode()
            right = hashlib.sha1(header + data, usedforsecurity=False).hexdigest() == blob.name
        else:
            continue
        if not right:
            damaged.append(path.name)
    return damaged


def remove_cached(repository: str, only: Path | None = None) -> int:
    """Delete a model from the cache: all of it, or the one folder. Returns the bytes that were freed."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = [repo for repo in scan_cache_dir(hub_cache()).repos if repo.repo_id == repository]
    except CacheNotFound:
        found = []
    revisions = [
        revision.commit_hash
        for repo in found
        if repo.repo_type == "model"
        for revision in repo.revisions
        if only is None or revision.snapshot_path == only
    ]
    if not revisions:
        raise UserError(f"the cache has no {repository}: 'unlearn models' lists what is there")
    strategy = scan_cache_dir(hub_cache()).delete_revisions(*revisions)
    strategy.execute()
    return strategy.expected_freed_size


def size_of(folder: Path) -> int:
    """The bytes of a folder's files, links followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hub_cache() -> Path:
    """Where the hub's client keeps models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Free room on the disk that ``folder`` lies on, or will lie on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def _parts_that_fit(repository: str) -> Iterator[None]:
    """Remove what is left of downloads that were cut off where it is no beginning of what the hub has."""
    try:
        yield
    except Exception as error:
        if hub_status(error) == RANGE_NOT_SATISFIABLE:
            for part in (*_blobs(repository).glob("*.incomplete"), *_blobs(repository).glob("*.part")):
                part.unlink(missing_ok=True)
        raise


def _blobs(repository: str) -> Path:
    """Where the cache keeps a model's files by their hashes."""
    from huggingface_hub.file_download import repo_folder_name

    return hub_cache() / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"


def _check_small_files(repository: str, asked: dict[str, Any]) -> None:
    """Fetch all but the weights, and refuse what could not be used with them."""
    from huggingface_hub import snapshot_download

    small = [name for name in WANTED if name not in WEIGHTS]
    wanted = {**asked, "allow_patterns": small}
    folder = Path(snapshot_download(repository, tqdm_class=_silent_bar(), **wanted))
    if (folder / "config.json").exists() and (reason := refusal(folder) or unknown_architecture(folder)):
        raise UserError(f"{repository} {reason}")


def _silent_bar() -> Any:
    """A progress bar that shows nothing."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # loaded lazily there

    class Silent(tqdm):
        """Looking is no download: it gets no bar."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent


def _files_to_fetch(repository: str, asked: dict[str, Any]) -> list[Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files: Any = snapshot_download(repository, dry_run=True, tqdm_class=_silent_bar(), **asked)
    except DryRunError:
        return []  # what is wrong is told better by the download itself
    return [entry for entry in files if entry.will_download]


def _fetch_large(repository: str, name: str, commit: str) -> None:
    """Put one large file among the cache's blobs, going on where an earlier process stopped.

    The hub's client resumes within a process only; a killed one would fetch gigabytes again.
    """
    from huggingface_hub import file_download, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # loaded lazily there

    url = hf_hub_url(repository, name, revision=commit)
    facts = get_hf_file_metadata(url)
    if facts.etag is None or not re.fullmatch(r"[0-9a-f]{64}", facts.etag):
        return  # not stored by its hash: the client fetches it whole
    blob = _blobs(repository) / facts.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{facts.etag}.part")
    with FileLock(f"{part}.lock"):
        if blob.exists():
            return
        with part.open("ab") as file:
            if file.tell() < (facts.size or 0):
                file_download.http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    expected_size=facts.size,
                    headers=build_hf_headers(),
                    displayed_filename=name,
                )
        if sha256_of(part) != facts.etag:
            part.unlink()
            raise EnvironmentCannot(f"{repository}: {name} arrived damaged: run it again")
        part.replace(blob)
        if not file_download.are_symlinks_supported(str(blob.parents[1])):
            # The client would copy it there: the same gigabytes twice.
            place = blob.parents[1] / "snapshots" / commit / name
            place.parent.mkdir(parents=True, exist_ok=True)
            blob.replace(place)
    Path(f"{part}.lock").unlink(missing_ok=True)


def _check_room(repository: str, files: Any) -> None:
    """Refuse what has no room; what is there of a download that was cut off is not fetched again."""
    begun = sum(part.stat().st_size for part in _blobs(repository).glob("*.part"))
    need = max(0, sum(entry.file_size or 0 for entry in files) - begun)
    free = free_bytes(hub_cache())
    if need > free:
        raise EnvironmentCannot(
            f"{repository} needs {need / GIGABYTE:.1f} GB and {hub_cache()} has {free / GIGABYTE:.1f} GB: "
            "make room there, or set HF_HOME to another disk"
        )
