"""What comes with the project, read like a run: an adapter, the rows it was made of, what was measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from unlearn_mlx.errors import UserError
from unlearn_mlx.paths import DATA, SHIPPED_ADAPTERS
from unlearn_mlx.runs.adapter_files import is_adapter
from unlearn_mlx.runs.commands import import_command
from unlearn_mlx.runs.records import (
    FORMAT,
    Manifest,
    ModelIdentity,
    Record,
    SettingsOfRun,
    Stage,
    read_record,
)
from unlearn_mlx.runs.run import AFTER, STAGES, Run, free_path
from unlearn_mlx.topics import load_topic

EXPORTS = Path("exports")  # below the current directory


class Making(Record):
    """What a shipped adapter's metrics.json says of how it was made."""

    model: ModelIdentity
    settings: SettingsOfRun
    versions: dict[str, str]


@dataclass
class ShippedRun(Run):
    """A shipped adapter as a run whose stages are done, and which nothing changes."""

    @property
    def rows(self) -> Path:
        """The folder of the questions and answers that it was made from."""
        return rows_of(self.path)

    @property
    def folders(self) -> list[Path]:
        """Where its files lie, and last where those go that are made of it."""
        return [self.path, self.rows, EXPORTS.joinpath(*self.path.resolve().parts[-2:])]

    def file(self, *names: str) -> Path:
        """A file that came with it, or its place below the current directory."""
        if names[0] == "adapter":
            return self.path.joinpath(*names[1:])
        places = [folder.joinpath(*names) for folder in self.folders]
        return next((place for place in places if place.exists()), places[-1])

    def check_own(self) -> NoReturn:
        """Refuse, and say how to get a run of one's own.

        Raises:
            UserError: always.
        """
        topic = self.manifest.topic
        command = import_command(str(self.path), topic, self.model_name, free_path(topic))
        raise UserError(
            f"{self.path} comes with the project and stays as it is: '{command}' makes a run of it"
        )

    def writing(self) -> NoReturn:
        """Refuse.

        Raises:
            UserError: always.
        """
        self.check_own()


def is_shipped(folder: Path) -> bool:
    """Whether a folder is an adapter that comes with the project."""
    inside = folder.resolve().parent.parent == SHIPPED_ADAPTERS.resolve()
    return inside and is_adapter(folder) and (rows_of(folder) / "topic.toml").exists()


def shipped_adapters() -> list[Path]:
    """The folders of the adapters that come with the project."""
    files = sorted(SHIPPED_ADAPTERS.glob("*/*/adapters.safetensors"))
    return [path.parent for path in files if is_shipped(path.parent)]


def shipped_run(folder: Path) -> ShippedRun:
    """The adapter in a shipped folder as a run.

    Raises:
        UserError: where a file of it is missing or damaged.
    """
    made = read_record(folder / "metrics.json", Making)
    manifest = Manifest(
        format=FORMAT,
        topic=load_topic(rows_of(folder) / "topic.toml").name,
        model=made.model,
        settings=made.settings,
        versions=made.versions,
        stages={stage: Stage(state="done") for stage in (*STAGES, *AFTER)},
    )
    return ShippedRun(folder, manifest)


def shipped_folder(name: str) -> Path | None:
    """The shipped adapter in a folder, or the one that is called so wherever one stands; None for others."""
    called = SHIPPED_ADAPTERS.parent / name
    return next((folder for folder in (Path(name), called) if is_shipped(folder)), None)


def rows_of(adapter: Path) -> Path:
    """The folder of the questions and answers that a shipped adapter was made from."""
    return DATA.joinpath("synthetic", *adapter.resolve().parts[-2:])
