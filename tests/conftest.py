import atexit
import os
import shutil
import tempfile

# Before anything of unlearn_mlx is imported: nothing of the user's own cache is read or written, no
# test reaches the network, and a product never waits for a thread whose core does something else.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["UNLEARN_CACHE"] = tempfile.mkdtemp(prefix="unlearn-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
atexit.register(shutil.rmtree, os.environ["UNLEARN_CACHE"], ignore_errors=True)

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from unlearn_mlx.compute.cpu_setup import prepare_cpu

prepare_cpu()  # before mlx is imported

from tests.helpers import write_tiny_model
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.loading import load_by_name

# Files that take longest. They begin first, so that no core works on one alone at the end.
LONGEST = (
    "test_embedded",
    "test_small_architectures",
    "test_tui_terminal",
    "test_demo_browser",
    "test_edits",
    "test_export",
    "test_cli",
    "test_hand_edits",
    "test_tui_runs",
    "test_bench",
    "test_planner",
    "test_import",
)


def pytest_xdist_auto_num_workers() -> int:
    """A process for each core that this one may use (xdist itself counts no hyper-threads)."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()


def pytest_collection_modifyitems(items) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_model(tiny_folder) -> Iterator[ChatModel]:
    with load_by_name(str(tiny_folder)) as model:
        yield model


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, int]]:
    """The shapes of the tokens that models compute logits of, [rows, tokens], as they come."""
    shapes = []
    logits_at = ChatModel.logits_at

    def noting(model, tokens, *rest):
        shapes.append(tokens.shape)
        return logits_at(model, tokens, *rest)

    monkeypatch.setattr(ChatModel, "logits_at", noting)
    return shapes


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory) -> Path:
    """A model whose output layer is not its embedding."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "untied", tied=False)


@pytest.fixture(scope="session")
def embedded_model() -> Iterator[ChatModel]:
    with load_by_name("smollm2") as model:
        yield model


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current directory, as a user would stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def llama3_folder(tmp_path_factory) -> Path:
    """Llama 3's architecture and vocabulary with Meta's tokenizer, two layers of random 4-bit weights."""
    from tests.architectures import write_llama3_model

    return write_llama3_model(tmp_path_factory.mktemp("models") / "llama3")


@pytest.fixture(scope="session")
def llama3_model(llama3_folder) -> Iterator[ChatModel]:
    with load_by_name(str(llama3_folder)) as model:
        yield model


@pytest.fixture(scope="session")
def qwen2_folder(tmp_path_factory, tiny_folder) -> Path:
    from tests.architectures import write_qwen2_model

    return write_qwen2_model(tmp_path_factory.mktemp("models") / "qwen2", tiny_folder)


@pytest.fixture
def hub():
    """A hub on loopback, with nothing in it."""
    from tests.hub import Hub

    opened = Hub()
    yield opened
    opened.close()


@pytest.fixture
def on_hub(hub, tmp_path, monkeypatch):
    """This process talks to that hub, as somebody who is logged in."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from tests.hub import TOKEN

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture(scope="session")
def made_place(tiny_folder, tmp_path_factory) -> Path:
    """What the demo's tests work in copies of."""
    from tests.demo_pages import make_place

    folder = tmp_path_factory.mktemp("place")
    make_place(folder, tiny_folder)
    return folder


@pytest.fixture
def place(made_place, tmp_path, monkeypatch) -> Path:
    """A current directory with one finished run, for the demo."""
    from tests.demo_pages import enter_place

    return enter_place(made_place, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def served_runs(tiny_folder, tmp_path_factory):
    """Two runs of the tiny model, each with an adapter of its own."""
    from tests.serving import run_with_adapter

    folder = tmp_path_factory.mktemp("served")
    return [run_with_adapter(folder / str(seed), tiny_folder, seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def server(served_runs):
    """A server of both, beside their base."""
    from tests.serving import serving

    with serving(served_runs) as opened:
        yield opened


@pytest.fixture
def client(server):
    """OpenAI's own client of that server."""
    from tests.serving import client_of

    return client_of(server)


@pytest.fixture(scope="session")
def said(served_runs):
    """What base and adapters answer to ASKED, by the generation that the pipeline uses."""
    from tests.serving import texts_by_name

    return texts_by_name(served_runs)
