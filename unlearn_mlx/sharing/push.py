"""Publish a run on the hub: adapter, data set, evaluation and a card, in a repository of its own.

The token is the hub client's own business: it is read from its store or HF_TOKEN, sent to the hub and
nowhere else, and cut out of every message.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.evaluation.schema import read_evaluation
from unlearn_mlx.models.hub_client import prepare_client
from unlearn_mlx.models.hub_errors import hub_reason, hub_words, is_hub_error
from unlearn_mlx.models.registry import HUB_ID
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS
from unlearn_mlx.runs.files import encoded, write_json
from unlearn_mlx.runs.records import Question, Record, SampledAnswer, read_record, read_records
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.model_card import model_card, public_name

RECORD = "push.json"  # which repositories this run made, so that an interrupted push goes on

# Where a run's files go in the repository. Journals, logs and checkpoints stay at home.
_FILES = {
    ("adapter", WEIGHTS): WEIGHTS,
    ("adapter", CONFIGURATION): CONFIGURATION,
    ("topic.toml",): "topic.toml",
    ("questions.jsonl",): "questions.jsonl",
    ("answers.jsonl",): "answers.jsonl",
    ("probes.jsonl",): "probes.jsonl",
    ("dataset", "train.jsonl"): "dataset/train.jsonl",
    ("dataset", "valid.jsonl"): "dataset/valid.jsonl",
}


class PushRecord(Record):
    """What push.json holds."""

    repositories: list[str]


def files_to_push(run: Run, repository: str) -> dict[str, bytes | Path]:
    """Every file of the repository: its path there, and its content or where it lies.

    Raises:
        UserError: where the run has no adapter or evaluation, or a file is a link out of the run.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"'{repository}' is no repository: give it as OWNER/NAME")
    run.finished_adapter()
    measured = read_evaluation(run.path)
    files: dict[str, bytes | Path] = {}
    for place, name in _FILES.items():
        path = run.file(*place)
        if not path.exists():
            continue
        if not any(path.resolve().is_relative_to(folder.resolve()) for folder in run.folders):
            raise UserError(f"{path} is a link that leaves the run: put the file itself there")
        files[name] = path
    kinds: dict[str, type[Record]] = {"questions.jsonl": Question, "answers.jsonl": SampledAnswer}
    for name, kind in kinds.items():
        rows = files.get(name)
        if isinstance(rows, Path) and not read_records(rows, kind):
            del files[name]  # an imported adapter brings none
    label = public_name(run.model_name)
    # Neither names this machine's folders.
    model = {**run.manifest.model.as_row(), "name": label}
    evaluation = {**measured.as_row(), "model": model}
    known = {"topic", "versions", "chat_template"} | (set() if run.is_imported else {"settings"})
    manifest = run.manifest.model_dump(include=known, exclude_unset=True)
    files["evaluation.json"] = _json(evaluation)
    files["manifest.json"] = _json({**manifest, "model": model})
    files["README.md"] = model_card(run, "adapter", repository=repository).encode()
    return dict(sorted(files.items()))


def push(run: Run, repository: str, public: bool = False, update: bool = False) -> str:
    """Create the repository, private unless ``public``, and upload everything in one commit.

    A push that was interrupted goes on with the same command: what the hub has is not sent again.

    Returns the commit's address.

    Raises:
        UserError: where a repository of that name is there already and ``update`` is False.
        EnvironmentCannot: where the hub refuses or cannot be reached.
    """
    files = files_to_push(run, repository)
    prepare_client()
    api = HfApi(library_name="unlearn-mlx")
    try:
        _create(api, run, repository, public, update)
        operations = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        commit = api.create_commit(
            repository, operations, commit_message=f"{run.topic.name}, forgotten: adapter, data, evaluation"
        )
    except UserError:
        raise
    except Exception as error:
        if not is_hub_error(error) and not isinstance(error, RuntimeError):  # of an upload
            raise
        raise _one_line(error, repository) from None  # the chain's requests carry the token
    return str(commit.commit_url)


def _create(api: HfApi, run: Run, repository: str, public: bool, update: bool) -> None:
    record = run.file(RECORD)
    made = read_record(record, PushRecord).repositories if record.exists() else []
    try:
        api.create_repo(repository, private=not public)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 409:
            raise
        if repository not in made and not update:
            raise UserError(
                f"there is a {repository} on the hub already: choose another name, or '--update' to add to it"
            ) from None
        return
    write_json(record, {"repositories": sorted({*made, repository})})


def _one_line(error: Exception, repository: str) -> UserError:
    if isinstance(error, LocalTokenNotFoundError):
        return EnvironmentCannot("you are not logged in to the hub: run 'hf auth login' first")
    own = {
        401: "the hub does not know you: run 'hf auth login', or set HF_TOKEN to a token that may write",
        403: f"your token may not write to {repository}: make one that may, or push under your own name",
        404: f"the hub has no {repository.split('/')[0]}, or you may not see it: push under your own name",
        409: f"{repository} was changed meanwhile: run the same command again",
    }
    return EnvironmentCannot(
        hub_reason(error, own)
        or f"the push to {repository} stopped ({hub_words(error)}): run the same command to go on"
    )


def _json(value: Any) -> bytes:
    return encoded(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
