"""What the documents name is there: files, links, commands."""

import re
from pathlib import Path

import pytest

from tests.test_layout import FLOORS
from tools import figures
from unlearn_mlx.cli.main import _parser
from unlearn_mlx.compute.device import Device
from unlearn_mlx.compute.memory import mac_memory
from unlearn_mlx.models.registry import default_model

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(ROOT / "docs").glob("*.md"),
]
# Code and shipped data; a run's own files (`events.jsonl`) are named in documents too.
PATH = re.compile(r"`([\w./-]+\.(?:py|toml))`|`((?:data|adapters|docs|tests|benchmarks|tools)/[\w./-]*)`")
MADE_BY_RUNS = {"topic.toml"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def files() -> list[str]:
    folders = ("unlearn_mlx", "tui", "demo", "tests", "benchmarks", "tools", "examples", "data")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    return ["/" + str(path.relative_to(ROOT)) for path in [*inside, *ROOT.glob("*.*")]]


@each_document
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    lost = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert lost == []


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_figures_about_memory_are_what_the_plan_says(name):
    text = (ROOT / name).read_text()
    assert figures.BLOCK.search(text)
    assert text == figures.with_figures(text), "write them: python -m tools.figures"


def test_the_first_command_is_said_to_take_what_it_takes():
    said = figures.first_command()
    for device, name in (
        (Device("metal", "Mac", mac_memory(16), 8), "`llama3`, first downloading 4.9 GB"),
        (Device("metal", "Mac", mac_memory(8), 8), "`llama3.2-1b`, first downloading 0.7 GB"),
        (Device("cpu", "here", 2**34, 2), "the embedded `smollm2`"),
    ):
        assert name in said and f"`{default_model(device)[0]}`" in name


@each_document
def test_files_that_are_named_are_there(document):
    known = files()
    named = {file or place for file, place in PATH.findall(document.read_text())} - MADE_BY_RUNS
    lost = [name for name in named if not (ROOT / name).exists()]
    lost = [name for name in lost if not any(path.endswith(f"/{name}") for path in known)]
    assert lost == []


@each_document
def test_commands_that_are_named_are_there(document):
    help = _parser([]).format_help()
    named = set(re.findall(r"(?:^|`|run )unlearn ([a-z]+)\b", document.read_text(), re.MULTILINE))
    assert [name for name in named if not re.search(rf"^    {name}\b", help, re.MULTILINE)] == []


def test_the_picture_of_the_floors_has_each_of_them_in_its_order():
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text.split("## The floors")[1].split("```")[1]
    for room in FLOORS:
        assert re.search(rf"\b{room}\b", picture), room
    # Each of these begins a line, the highest first; the lowest share one.
    rooms = re.findall(r"^  (\w+)(?:/|\.py)? ", picture, re.MULTILINE)
    below_faces = [room for room in rooms if room in FLOORS[FLOORS.index("runs") :] and room != "cli"]
    assert below_faces == list(reversed(FLOORS[FLOORS.index("runs") : FLOORS.index("tui")]))
