"""Some files of a repository on the hub, asked for by their names: whatever else it holds stays there."""

from collections.abc import Sequence
from pathlib import Path

from unlearn_mlx.models.hub_client import hub_failures, prepare_client, reach
from unlearn_mlx.models.hub_errors import hub_status, is_hub_error


def fetch_files(repository: str, names: Sequence[str]) -> Path:
    """The folder in the cache with those files of a repository that it has.

    Where the hub cannot be reached, files that were fetched before are taken.

    Raises:
        EnvironmentCannot: where they cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError

    wanted = list(names)
    with hub_failures(repository):
        prepare_client()
        try:
            if not constants.is_offline_mode():
                reach(repository)
            return Path(snapshot_download(repository, allow_patterns=wanted))
        except Exception as error:
            if not is_hub_error(error) or hub_status(error) is not None:
                raise
            try:
                return Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
            except (IncompleteSnapshotError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
                raise error from None
