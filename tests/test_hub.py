"""The hub as it can be: out of reach, silent, gated, moved; behind proxies; caches in unusual places."""

import json
import shutil
import socket
import time
from pathlib import Path

import mlx.core as mx
import pytest

from tests.helpers import complaint, strong_adapter, unlearn
from tests.hub import TOKEN
from tests.runs_with_results import finished_run
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.models import hub as downloads
from unlearn_mlx.models import hub_client
from unlearn_mlx.models.hub_files import fetch_files
from unlearn_mlx.models.registry import resolve_model

OWN = "someone/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def there(on_hub, tiny_folder):
    """A hub with one model."""
    on_hub.add_model(OWN, {path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    return on_hub


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """A run that can be pushed."""
    return finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder, probes=20)


@pytest.fixture
def silence():
    """Somebody who takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("proxy", ["socks5://user:secret@127.0.0.1:9", "nonsense://user:secret@127.0.0.1:9"])
@pytest.mark.parametrize("what", ["pull", "import", "push"])
def test_a_proxy_that_cannot_be_used_is_told_in_a_line(run, tmp_path, monkeypatch, capsys, proxy, what):
    """Without the package that the client needs for SOCKS, which only such a proxy is reason to install."""
    hub_client.prepare_client.cache_clear()
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    words = {
        "pull": ["models", "pull", OWN],
        "import": ["import", OWN, "--topic", "Mr X", "--out", str(tmp_path / "run")],
        "push": ["push", str(run.path), "me/x"],
    }[what]
    try:
        assert main(words) == 3
    finally:
        monkeypatch.delenv("ALL_PROXY")
        hub_client.prepare_client.cache_clear()
        hub_client.prepare_client()
    said = complaint(capsys.readouterr().err)
    assert "ALL_PROXY names" in said and "unset" in said and "secret" not in said
    assert ("pip install socksio" in said) == proxy.startswith("socks")


@pytest.mark.parametrize("what", ["models pull llama3", f"models pull {OWN}", f"import {OWN}"])
@pytest.mark.parametrize("way", ["http://127.0.0.1:9", "http://no.such.host.invalid", "silence"])
def test_without_a_network_one_line_comes_soon(there, silence, monkeypatch, workplace, capsys, what, way):
    waits = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silence if way == "silence" else way)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    began = time.monotonic()
    assert main(what.split()) == 3
    assert waits == [] and time.monotonic() - began < 10
    shown = capsys.readouterr().err.strip()
    assert complaint(shown) == shown.splitlines()[-1] and "Retrying" not in shown
    assert ("does not answer" if way == "silence" else "cannot be reached") in shown
    assert "run it again with a network" in shown


def test_no_request_waits_for_good(there, monkeypatch):
    """Not even those to which the client gives no limit: a hub that answers once and then no more."""
    monkeypatch.setattr(hub_client, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_EXCEPTIONS", ())
    there.faults = [("/tree/", -1, 100)]
    began = time.monotonic()
    with pytest.raises(EnvironmentCannot, match="does not answer"):
        resolve_model(OWN)
    assert time.monotonic() - began < 20


def test_a_download_that_stops_moving_is_given_up_and_the_next_pull_goes_on(there, tiny_folder, monkeypatch):
    monkeypatch.setattr(downloads, "LARGE", 1000)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    there.stalled = True
    began = time.monotonic()
    with pytest.raises(EnvironmentCannot, match="does not answer.*run it again"):
        resolve_model(OWN)
    assert time.monotonic() - began < 20
    came = there.sent[WEIGHTS]
    there.stalled = False
    folder = resolve_model(OWN).folder
    whole = (tiny_folder / WEIGHTS).read_bytes()
    assert (folder / WEIGHTS).read_bytes() == whole
    assert came >= len(whole) // 2, "it went on by itself, as long as anything came"
    assert there.sent[WEIGHTS] <= len(whole) + 12_000, "what came is not sent again"


@pytest.mark.parametrize("is_large", [False, True])
def test_one_refusal_to_go_on_behind_the_end_spoils_no_later_pull(there, tiny_folder, monkeypatch, is_large):
    monkeypatch.setattr(downloads, "LARGE", 1000 if is_large else 2**40)
    there.faults = [(r"GET .*/resolve/.*safetensors", 416, 1)]
    with pytest.raises(EnvironmentCannot, match="run the same command again"):
        resolve_model(OWN)
    assert (resolve_model(OWN).folder / WEIGHTS).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()


def test_room_is_counted_for_what_is_still_to_come_and_once(there, tiny_folder, monkeypatch):
    """Where the cache has no links, and a part of the weights is there."""
    monkeypatch.setattr(downloads, "LARGE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    digest = resolve_model(str(tiny_folder)).weights_sha256
    weights = (tiny_folder / WEIGHTS).read_bytes()
    blobs = downloads.hub_cache() / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.part").write_bytes(weights[:-500])
    rest = 500 + sum(len(data) for name, data in there.files(OWN).items() if name != WEIGHTS)
    monkeypatch.setattr(downloads, "free_bytes", lambda _: rest - 1)
    with pytest.raises(EnvironmentCannot, match="make room"):
        resolve_model(OWN)
    monkeypatch.setattr(downloads, "free_bytes", lambda _: rest)
    copied = []
    monkeypatch.setattr("shutil.copyfile", lambda source, place: copied.append(Path(source).stat().st_size))
    folder = resolve_model(OWN).folder
    assert (folder / WEIGHTS).read_bytes() == weights and there.sent[WEIGHTS] == 500
    assert not [size for size in copied if size > 1000], "what is large was never there twice"


@pytest.mark.parametrize("what", [f"models pull {OWN}", f"import {OWN}", f"reproduce {OWN}"])
def test_a_gated_repository_names_the_licence_and_not_the_token(there, workplace, capsys, what):
    there.files(OWN).update({"README.md": b"x", "adapter_config.json": b"{}"})
    there.gated.add(OWN)
    assert main(what.split()) == 3
    said = capsys.readouterr()
    assert "accept its licence" in complaint(said.err) and "hf auth login" in said.err
    assert TOKEN not in said.out + said.err


def test_a_renamed_repository_is_fetched_and_its_new_name_is_said(there, capsys):
    there.renamed["former/name"] = OWN
    assert main(["models", "pull", "former/name"]) == 0
    said = capsys.readouterr()
    assert f"former/name is called {OWN} on the hub now" in said.err
    assert main(["models", "verify", "former/name"]) == 0
    before = len(there.requests)
    assert main(["models", "pull", "former/name"]) == 0, "from the cache"
    assert len(there.requests) == before


def test_files_that_were_fetched_before_are_there_without_a_network(there, monkeypatch):
    folder = fetch_files(OWN, ["config.json"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_files(OWN, ["config.json"]) == folder
    with pytest.raises(EnvironmentCannot, match="cannot be reached"):
        fetch_files(OWN, ["config.json", "tokenizer.json"])


def test_a_cache_in_a_folder_with_blanks_and_brackets_works(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "my models [x] *" / "hub"))
    monkeypatch.setattr(downloads, "LARGE", 1000)
    assert main(["models", "pull", OWN]) == 0
    assert main(["models", "verify", OWN]) == 0
    with load_by_name(OWN) as model:
        assert "[x]" in str(model.source.folder)
    assert main(["models", "remove", OWN]) == 0
    assert not list((tmp_path / "my models [x] *").rglob(WEIGHTS))


def test_a_pushed_adapter_is_imported_by_its_id_alone(there, run, tiny_model, workplace, capsys):
    """Its card says what it forgets, and on which model."""
    assert main(["push", str(run.path), "me/forgotten"]) == 0
    card = there.files("me/forgotten")["README.md"].decode()
    named = card.replace('"name": "tiny"', f'"name": "{OWN}"')
    there.files("me/forgotten")["README.md"] = named.encode()
    assert main(["import", "me/forgotten", "--out", "theirs"]) == 0, capsys.readouterr().err
    manifest = json.loads((workplace / "theirs" / "manifest.json").read_text())
    assert manifest["topic"] == run.topic.name and manifest["model"]["name"] == OWN
    theirs, ours = (
        mx.load(str(place / "adapters.safetensors"))
        for place in (Path("theirs/adapter"), run.file("adapter"))
    )
    assert theirs.keys() == ours.keys() and all(mx.array_equal(theirs[name], ours[name]) for name in ours)
    assert (workplace / "theirs" / "topic.toml").read_text() == run.topic.to_toml(), "with all its names"


def test_an_adapter_whose_card_names_no_topic_asks_for_one(there, tiny_model, workplace, capsys):
    strong_adapter(tiny_model).save(workplace / "adapter")
    (workplace / "adapter" / "README.md").write_text("# An adapter\n")
    assert main(["import", "adapter", "--model", OWN]) == 2
    assert "--topic" in complaint(capsys.readouterr().err)
    shutil.rmtree(workplace / "adapter")


@pytest.mark.parametrize("what", [f"models pull {OWN}", f"import {OWN} --topic x", f"reproduce {OWN}"])
def test_the_token_is_in_no_output_of_a_command(hub, tmp_path, what):
    hub.add_model(OWN, {})
    hub.faults = [("/api/", 503, 1), ("/resolve/", 401, 100), ("/tree/", 401, 100)]
    environment = {**hub.environment(tmp_path / "home"), "HF_DEBUG": "1"}
    done = unlearn(*what.split(), environment=environment, cwd=tmp_path)
    assert done.returncode in (2, 3)
    complaint(done.stderr)
    assert TOKEN not in done.stdout + done.stderr
