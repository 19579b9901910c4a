"""Models from a hub: fetched, resumed, used without a network, checked, removed."""

import hashlib
import json
import shutil

import pytest

from tests.helpers import complaint, unlearn
from tests.hub import TOKEN
from unlearn_mlx.cli.main import main
from unlearn_mlx.compute.model_shape import ModelShape
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.models import hub as downloads
from unlearn_mlx.models import registry as models
from unlearn_mlx.models.registry import NAMED_MODELS, NamedModel, named_model, resolve_model

OWN = "someone/tiny"
SHAPE = ModelShape(2, 64, 128, 4, 32, 400, True, 2**30)


@pytest.fixture
def tiny_files(tiny_folder):
    return {path.name: path.read_bytes() for path in tiny_folder.iterdir()}


@pytest.fixture
def there(on_hub, tiny_files):
    """A hub with one model, beside which lies what nobody should fetch."""
    on_hub.add_model(
        OWN,
        {
            **tiny_files,
            "modeling_tiny.py": b"raise SystemExit('run')",
            "pytorch_model.bin": b"pickle",
            "tokenizer.py": b"raise SystemExit('run')",
            "README.md": b"read me",
        },
    )
    return on_hub


def gets(hub):
    return [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]


def test_the_table_is_pinned_and_named_once():
    for model in NAMED_MODELS.values():
        assert (model.revision is None) == (model.repository is None)
        if model.repository:
            assert len(model.revision) == 40 and int(model.revision, 16)
            assert named_model(model.repository) is model
    assert NAMED_MODELS["llama3"].repository == "mlx-community/Meta-Llama-3-8B-Instruct-4bit"


def test_a_hub_model_is_fetched_once_without_code_or_pickles(there, tiny_files, capsys):
    source = resolve_model(OWN)
    assert {path.name for path in source.folder.iterdir()} == set(tiny_files)
    assert source.revision == there.commit_of(OWN)
    shown = capsys.readouterr().err
    assert "Fetching" in shown and "dry-run" not in shown
    before = len(there.requests)
    assert resolve_model(OWN) == source
    assert len(there.requests) == before, "the second time needs no network"


@pytest.mark.parametrize("is_large", [False, True])
def test_weights_are_known_by_their_sha256_wherever_they_lie(
    there, tiny_folder, tmp_path, monkeypatch, is_large
):
    if is_large:  # those in the cache are not read again
        monkeypatch.setattr(models, "GIGABYTE", 1)
    sha256 = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert resolve_model(OWN).weights_sha256 == sha256
    assert resolve_model(str(tiny_folder)).weights_sha256 == sha256
    folder = shutil.copytree(tiny_folder, tmp_path / "two")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    more = hashlib.sha256(b"more").hexdigest()
    assert resolve_model(str(folder)).weights_sha256 == f"{more}+{sha256}"


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(there, tiny_files, monkeypatch):
    """Also in another process than the one that was killed."""
    monkeypatch.setattr(downloads, "LARGE", 1000)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    size = len(tiny_files["model.safetensors"])
    there.cut_after = size // 2
    there.faults = [(r"GET .*/resolve/.*safetensors", 503, 0)]

    def cut(*_):
        there.faults = [(r"GET .*/resolve/.*safetensors", 503, 100)]

    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", cut)
    with pytest.raises(EnvironmentCannot, match="run the same command again"):
        resolve_model(OWN)
    there.faults = []
    source = resolve_model(OWN)
    assert (source.folder / "model.safetensors").read_bytes() == tiny_files["model.safetensors"]
    assert size <= there.sent["model.safetensors"] <= size + 1000, "all but a block came once"
    assert not list(source.folder.parents[1].rglob("*.part*"))


def test_a_large_file_that_arrives_damaged_is_not_kept(there, tiny_files, monkeypatch):
    monkeypatch.setattr(downloads, "LARGE", 1000)
    resolve_model(OWN)
    blob = (resolve_model(OWN).folder / "model.safetensors").resolve()
    damaged = blob.with_name(blob.name + ".part")
    blob.replace(damaged)
    damaged.write_bytes(b"x" * 500 + damaged.read_bytes()[500:])
    with pytest.raises(EnvironmentCannot, match="damaged"):
        resolve_model(OWN)
    assert (resolve_model(OWN).folder / "model.safetensors").read_bytes() == tiny_files["model.safetensors"]


def test_a_cache_without_links_holds_a_model_once_and_notices_one_changed_byte(there, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "LARGE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    folder = resolve_model(OWN).folder
    weights = folder / "model.safetensors"
    assert not weights.is_symlink()
    same = [path for path in folder.parents[1].rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert len({path.read_bytes() for path in same}) == len(same), "nothing lies there twice"
    assert main(["models", "verify", OWN]) == 0
    for path in folder.iterdir():
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        capsys.readouterr()
        assert main(["models", "verify", OWN]) == 3
        assert path.name in complaint(capsys.readouterr().err)
        path.write_bytes(before)
    assert main(["models", "verify", OWN]) == 0


def test_a_rest_of_a_download_that_does_not_fit_is_forgotten(there, monkeypatch):
    """The hub refuses to go on behind the end of a file, and would for good."""
    there.faults = [(r"GET .*/resolve/.*safetensors", 416, 1)]
    blobs = downloads.hub_cache() / "models--someone--tiny" / "blobs"
    with pytest.raises(EnvironmentCannot, match="run the same command again"):
        resolve_model(OWN)
    assert not list(blobs.glob("*.incomplete"))
    assert resolve_model(OWN).revision == there.commit_of(OWN)


def test_no_room_is_said_before_a_byte_is_fetched(there, monkeypatch):
    monkeypatch.setattr(downloads, "free_bytes", lambda _: 1000)
    with pytest.raises(EnvironmentCannot, match="make room"):
        resolve_model(OWN)
    assert gets(there) == []


def test_a_pinned_revision_is_what_is_fetched(there, monkeypatch):
    pinned = NamedModel("pinned", OWN, there.commit_of(OWN), SHAPE, "MIT", "mit", "x/y")
    monkeypatch.setitem(models.NAMED_MODELS, "pinned", pinned)
    assert resolve_model("pinned").revision == there.commit_of(OWN)
    lost = NamedModel("lost", OWN, "0" * 40, SHAPE, "MIT", "mit", "x/y")
    monkeypatch.setitem(models.NAMED_MODELS, "lost", lost)
    with pytest.raises(EnvironmentCannot, match="no revision"):
        resolve_model("lost")


@pytest.mark.parametrize("where", ["/revision/", "/tree/", "/resolve/"])
@pytest.mark.parametrize(
    ("status", "way_out"),
    [(401, "hf auth login"), (403, "may not read"), (429, "asks to wait"), (500, "trouble"), (0, "go on")],
)
def test_a_refused_download_names_the_way_out_and_never_the_token(there, where, status, way_out):
    """The hub of the tests repeats the token in its answers, as a real one may."""
    there.faults = [(where, status, 1000)]
    with pytest.raises(EnvironmentCannot) as caught:
        resolve_model(OWN)
    message = str(caught.value)
    assert way_out in message and "\n" not in message
    assert TOKEN not in message and "Bear" not in message
    there.faults = []
    assert resolve_model(OWN).revision == there.commit_of(OWN), "the same command goes on"


def test_a_model_that_is_not_there_is_one_line(there):
    with pytest.raises(EnvironmentCannot, match="the hub has no someone/else"):
        resolve_model("someone/else")


@pytest.mark.parametrize(
    "name", ["../../evil/model.safetensors", "model-00001-of-00002.safetensors/../../../x"]
)
def test_a_path_from_the_hub_never_leaves_its_folder(on_hub, tiny_files, tmp_path, name):
    on_hub.add_model(OWN, {**tiny_files, name: b"evil"})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    try:
        folder = resolve_model(OWN).folder
        assert {path.name for path in folder.iterdir()} == set(tiny_files)
    except UserError:
        pass
    for path in {path for path in tmp_path.rglob("*") if path.is_file()} - before:
        assert path.is_relative_to(tmp_path / "hub-cache")
        assert path.read_bytes() != b"evil" or "blobs" in path.parts


def test_models_lists_pulls_verifies_and_removes(there, monkeypatch, capsys):
    pinned = NamedModel("pinned", OWN, there.commit_of(OWN), SHAPE, "MIT", "mit", "x/y")
    monkeypatch.setitem(models.NAMED_MODELS, "pinned", pinned)

    def state():
        assert main(["models", "--json"]) == 0
        return {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}["pinned"]

    assert state() == "1.0 GB to fetch"
    assert main(["models", "verify", "pinned"]) == 2
    assert main(["models", "pull", "pinned"]) == 0
    capsys.readouterr()
    assert state().startswith("fetched")
    assert main(["models", "verify", "pinned"]) == 0
    blob = (resolve_model("pinned").folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert main(["models", "verify", "pinned"]) == 3
    assert "model.safetensors" in complaint(capsys.readouterr().err)
    assert main(["models", "remove", "pinned"]) == 0
    capsys.readouterr()
    assert state() == "1.0 GB to fetch"
    assert main(["models", "remove", "pinned"]) == 2


def test_a_dry_run_downloads_nothing_and_says_how_much_it_would(there, workplace, capsys):
    assert main(["run", "Harry Potter", "--dry-run", "--model", OWN]) == 0
    assert f"unlearn models pull {OWN}" in capsys.readouterr().out
    assert gets(there) == [] and not (workplace / "runs").exists()
    assert main(["run", "Harry Potter", "--dry-run", "--model", "llama3"]) == 0
    assert "download 4.9 GB" in capsys.readouterr().out
    resolve_model(OWN)
    assert main(["run", "Harry Potter", "--dry-run", "--model", OWN]) == 0
    shown = capsys.readouterr().out
    assert "download" not in shown and "minutes" in shown


def test_a_half_fetched_model_is_called_that(there, tiny_files, monkeypatch, capsys):
    pinned = NamedModel("pinned", OWN, there.commit_of(OWN), SHAPE, "MIT", "mit", "x/y")
    monkeypatch.setitem(models.NAMED_MODELS, "pinned", pinned)
    folder = resolve_model("pinned").folder
    (folder / "model.safetensors").unlink()
    assert main(["models"]) == 0
    assert "half fetched" in capsys.readouterr().out
    assert main(["models", "pull", "pinned"]) == 0
    assert (folder / "model.safetensors").read_bytes() == tiny_files["model.safetensors"]


@pytest.mark.parametrize(
    "arguments", [("pull",), ("verify", "llama3"), ("remove", "smollm2"), ("remove", "a/b")]
)
def test_models_refuses_in_one_line(on_hub, capsys, arguments):
    assert main(["models", *arguments]) == 2
    complaint(capsys.readouterr().err)


def test_without_a_network_the_way_out_is_named(tmp_path):
    done = unlearn("models", "pull", "llama3", environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 3
    assert "smollm2" in complaint(done.stderr)


def test_the_embedded_model_verifies(embedded_model, capsys):
    assert main(["models", "verify", "smollm2"]) == 0
    assert "whole" in capsys.readouterr().out


def test_a_model_that_wants_to_run_code_is_refused(tiny_folder, tmp_path):
    from unlearn_mlx.inference.loading import load_model

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    with pytest.raises(EnvironmentCannot):
        load_model(resolve_model(str(folder)))
    assert not (tmp_path / "ran").exists()
