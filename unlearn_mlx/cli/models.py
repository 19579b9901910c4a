"""Commands that bring models in and take results out."""

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from unlearn_mlx.cli.output import say
from unlearn_mlx.sharing.forms import FORMS, MODELFILE


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    models = add("models", _models, "list the models that have a name here; pull, verify or remove one")
    models.add_argument("what", nargs="?", choices=["list", "pull", "verify", "remove"], default="list")
    models.add_argument(
        "name", nargs="?", metavar="MODEL", help="a name from the list, or a hub id OWNER/NAME"
    )
    models.add_argument("--json", action="store_true", help="print the list as JSON")

    export = add("export", _export, "write a run's result for mlx-lm, transformers, llama.cpp or Ollama")
    export.add_argument("run", metavar="RUN")
    export.add_argument(
        "--format",
        choices=FORMS,
        default="adapter",
        help="; ".join(f"{name}: {form.what}" for name, form in FORMS.items()),
    )
    export.add_argument(
        "--bits",
        type=int,
        choices=[4, 8, 16],
        help="for mlx, gguf and ollama (default 8; 4 can bring knowledge back)",
    )
    export.add_argument("--out", type=Path, metavar="DIR", help="where to (default: RUN/export/...)")

    push = add("push", _push, "publish a run's adapter, data and evaluation on the hub, privately")
    push.add_argument("run", metavar="RUN")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument("--public", action="store_true", help="let everybody see a new repository")
    push.add_argument("--update", action="store_true", help="add to a repository that is there already")
    push.add_argument("--dry-run", action="store_true", help="show all files and end")

    serve = add("serve", _serve, "answer OpenAI clients on this machine: base and adapter by name")
    serve.add_argument("run", metavar="RUN", nargs="+", help="of one model; each adapter has a name")
    serve.add_argument("--port", type=int, default=8080, help="0 takes any free one (default 8080)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: loopback)")
    serve.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name that clients may call this machine by, such as host.docker.internal",
    )
    serve.add_argument(
        "--allow-origin",
        metavar="URL",
        action="append",
        default=[],
        help="a page or app that may ask from a browser, such as app://obsidian.md",
    )
    serve.add_argument("--api-key", metavar="KEY", help="answer only clients that send it")

    bring = add("import", _import, "make a run of an adapter from mlx-lm or PEFT")
    bring.add_argument("where", metavar="DIR|HUB_ID")
    bring.add_argument("--topic", help="what the adapter is meant to forget (default: what its card says)")
    bring.add_argument("--model", help="the base model (default: the one that the adapter or its card names)")
    bring.add_argument("--out", type=Path, metavar="DIR", help="the run's directory (default: runs/<topic>)")


def _models(given: argparse.Namespace) -> int:
    from unlearn_mlx.errors import UserError

    if given.what == "list":
        return _list_models(given.json)
    if given.name is None:
        raise UserError(f"which model? 'unlearn models {given.what} NAME'; 'unlearn models' lists them")
    return {"pull": _pull, "verify": _verify, "remove": _remove}[given.what](given.name)


def _list_models(as_json: bool) -> int:
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.compute.memory import GIGABYTE
    from unlearn_mlx.models.embedded import embedded_is_here
    from unlearn_mlx.models.hub import cached_folder, lack, size_of
    from unlearn_mlx.models.registry import NAMED_MODELS, default_model, memory_plan
    from unlearn_mlx.paths import cache_folder
    from unlearn_mlx.text.printable import as_json as to_json

    device = current_device()
    chosen, reason = default_model(device)
    rows = []
    for model in NAMED_MODELS.values():
        folder = cached_folder(model.repository, model.revision) if model.repository else None
        if model.repository is None:
            state = "embedded" if embedded_is_here(cache_folder()) else "not installed"
        elif folder is None:
            state = f"{model.download_bytes / GIGABYTE:.1f} GB to fetch"
        elif missing := lack(folder):
            state = f"half fetched: {missing}"
        else:
            state = f"fetched, {size_of(folder) / GIGABYTE:.1f} GB"
        facts = {name: value for name, value in vars(model).items() if name != "shape"}
        sizes = {
            "download_bytes": model.download_bytes,
            "memory_bytes": memory_plan(model, device).process_bytes,
        }
        rows.append({**facts, **sizes, "state": state, "default": model.name == chosen})
    if as_json:
        print(to_json(rows))
        return 0
    for row in rows:
        mark = f"  <- default here: {reason}" if row["default"] else ""
        where = f"{row['repository']}@{row['revision'][:7]}" if row["repository"] else row["origin"]
        print(
            f"{row['name']:13s} {where:52s} {row['memory_bytes'] / GIGABYTE:4.1f} GB memory  "
            f"{row['licence']:20s} {row['state']}{mark}"
        )
    return 0


def _pull(name: str) -> int:
    from unlearn_mlx.models.registry import name_here, named_model, resolve_model

    name = name_here(name)
    _say_new_name(name)
    if (model := named_model(name)) and model.is_llama:
        say(f"{model.name} is under Meta's {model.licence} licence, which you accept by fetching it.")
    source = resolve_model(name)
    print(source.folder)
    say(f'Revision {source.revision}. Next: unlearn run "Harry Potter" --model {name}')
    return 0


def _say_new_name(repository: str) -> None:
    """Say it where the hub has a repository, to be fetched now, under another name than the one given."""
    from unlearn_mlx.models.hub_client import new_name
    from unlearn_mlx.models.registry import to_fetch

    if "/" in repository and to_fetch(repository) and (now := new_name(repository)):
        say(f"{repository} is called {now} on the hub now; what is fetched is that.")


def _verify(name: str) -> int:
    from unlearn_mlx.errors import EnvironmentCannot, UserError
    from unlearn_mlx.models.hub import damaged_files, lack

    if name == "smollm2":
        from unlearn_mlx.models.registry import resolve_model

        resolve_model(name)  # compares every hash, and converts again what is damaged
        print("smollm2: whole")
        return 0
    folder = _cached(name)
    if folder is None:
        raise UserError(f"{name} is not fetched yet: 'unlearn models pull {name}'")
    wrong = lack(folder) or ", ".join(damaged_files(folder))
    if wrong:
        raise EnvironmentCannot(
            f"{name} is damaged ({wrong}): 'unlearn models remove {name}', then pull it again"
        )
    print(f"{name}: whole, revision {folder.name}")
    return 0


def _remove(name: str) -> int:
    from unlearn_mlx.compute.memory import GIGABYTE
    from unlearn_mlx.errors import UserError
    from unlearn_mlx.models.hub import remove_cached
    from unlearn_mlx.models.registry import named_model

    model = named_model(name)
    if model is not None and model.repository is None:
        raise UserError("smollm2 comes with the program: there is nothing to remove")
    freed = remove_cached(model.repository or name if model else name)
    print(f"{name}: removed, {freed / GIGABYTE:.1f} GB freed")
    return 0


def _cached(name: str) -> Path | None:
    from unlearn_mlx.models.hub import cached_folder
    from unlearn_mlx.models.registry import named_model

    model = named_model(name)
    return cached_folder(model.repository or name, model.revision) if model else cached_folder(name, None)


def _export(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.files import read_json
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.sharing.export import export
    from unlearn_mlx.sharing.model_card import ollama_command

    run = find_run(given.run)
    bits = (given.bits or 8) if FORMS[given.format].is_rounded else given.bits
    say(f"Writing {given.format}, loading it again and asking it the run's questions ...")
    with redirect_stdout(sys.stderr):  # mlx-lm tells of its work there
        folder, leak = export(run, given.format, None if bits == 16 else bits, given.out)
    print(folder)
    if leak is None:
        say(f"Its leak was {read_json(folder / 'export.json')['note']}.")
    else:
        say(f"{'Warning: ' if leak.is_back else ''}{leak.words()}")
    if given.format == "ollama":
        say(f"Next: {ollama_command(run, folder / MODELFILE)}")
    return 0


def _push(given: argparse.Namespace) -> int:
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.sharing.push import files_to_push, push

    run = find_run(given.run)
    if given.dry_run:
        for name, content in files_to_push(run, given.repository).items():
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            print(f"{size:12,d}  {name}")
        say(f"{'Public' if given.public else 'Private'} repository {given.repository}; nothing was sent.")
        return 0
    print(push(run, given.repository, given.public, given.update))
    return 0


def _serve(given: argparse.Namespace) -> int:
    from unlearn_mlx.errors import UserError
    from unlearn_mlx.runs.finding import find_run
    from unlearn_mlx.sharing.serve.gate import LOCAL_NAMES, Admission
    from unlearn_mlx.sharing.serve.server import Server, model_names

    if not 0 <= given.port < 65536:
        raise UserError(f"--port {given.port}: a port is between 0 and 65535")
    if given.api_key == "":
        raise UserError("--api-key is empty: give one, or leave the option out")
    runs = [find_run(name) for name in given.run]
    names = model_names(runs)
    admission = Admission(
        tuple(name.lower() for name in given.allow_host),
        tuple(origin.rstrip("/") for origin in given.allow_origin),
        given.api_key,
    )
    say(f"Loading {runs[0].model_name} ...")
    server = Server(runs[0].model_name, names, given.port, given.host, admission)
    print(server.address, flush=True)
    say(f"Models: {', '.join(server.names)}. Ctrl-C ends.")
    if server.place[0] not in (*LOCAL_NAMES, "::1") and given.api_key is None:
        say("Warning: other machines may ask too. '--api-key KEY' lets in only those that have the key.")
    server.serve()
    say("Ended.")
    return 0


def _import(given: argparse.Namespace) -> int:
    from unlearn_mlx.sharing.importing import import_adapter
    from unlearn_mlx.topics import Topic, checked_name, shipped_topic

    topic = None
    if given.topic is not None:
        name = checked_name(given.topic)
        topic = shipped_topic(name) or Topic(name)
    run = import_adapter(given.where, topic, given.model, given.out)
    print(run.path)
    say(f'Next: unlearn evaluate "{run.path}", or unlearn chat "{run.path}"')
    return 0
