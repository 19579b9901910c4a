import atexit
import os
import shutil
import tempfile

# Before anything of unlearn_mlx is imported: nothing of the user's own cache is read or written, and
# no test reaches the network.
os.environ["UNLEARN_CACHE"] = tempfile.mkdtemp(prefix="unlearn-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
atexit.register(shutil.rmtree, os.environ["UNLEARN_CACHE"], ignore_errors=True)

from pathlib import Path

import pytest

import unlearn_mlx  # noqa: F401 (before mlx, which binds to the first BLAS in the process)
from tests.helpers import write_tiny_model
from unlearn_mlx.language_model.chat_model import ChatModel
from unlearn_mlx.language_model.models import load_model, resolve_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_model(tiny_folder) -> ChatModel:
    return load_model(resolve_model(str(tiny_folder)))


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory) -> Path:
    """A model whose output layer is not its embedding."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "untied", tied=False)


@pytest.fixture(scope="session")
def embedded_model() -> ChatModel:
    return load_model(resolve_model("smollm2"))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current directory, as a user would stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
