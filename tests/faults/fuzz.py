"""Every parser of files that others may have made, given what nobody would: only typed errors come."""

import json
import random
import resource
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.evaluated import USUAL, evaluation_of
from tests.helpers import WIZARD, dataset_rows, negative_rows
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.judge import Judgement
from unlearn_mlx.evaluation.probes import read_probes
from unlearn_mlx.evaluation.records import Audit
from unlearn_mlx.evaluation.schema import read_metrics
from unlearn_mlx.inference.adapters import shape_from
from unlearn_mlx.inference.arrays import read_arrays
from unlearn_mlx.models.hub import lack
from unlearn_mlx.runs.files import read_json, read_rows
from unlearn_mlx.runs.records import (
    NegativeRow,
    Question,
    SampledAnswer,
    TrainingRow,
    read_events,
    read_known,
    read_manifest,
    read_record,
    read_records,
)
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.sharing.push import PushRecord
from unlearn_mlx.synthetic_data.edits import EditRow
from unlearn_mlx.synthetic_data.journal import CompletionRow
from unlearn_mlx.topics import load_topic

INPUTS = 1_000_000
MEMORY = 6 * 2**30  # bytes of addresses that the whole may take: what asks for more fails
# What breaks parsers: borders of numbers, halves of characters, marks, signs that mean something elsewhere.
PIECES = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\xed\xa0\xbd", b"\\ud83d", b"\\u0000",
    b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 400, b"18446744073709551616", b"null", b"[]", b"{}", b'""',
    b"[" * 500, b'{"a":' * 500, b"\n", b"\r", b"'''", b'"', b"=", b"[[x]]", b"..", b"A" * 5000,
    b"a b " * 4000,
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """A reader of a file, the name that file has, and one that it takes."""

    file: str
    seed: bytes
    read: Callable[[Path], object]


def _lines(*rows: Mapping[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _arrays() -> bytes:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"layers.0.lora_a": entry, "__metadata__": {"format": "mlx"}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * 24


def _unless_damaged(path: Path) -> None:
    try:
        read_arrays(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _shape(path: Path) -> None:
    shape_from(read_json(path), path, "train again")


EVENT = {"time": 1.0, "stage": "train", "kind": "progress", "done": 1, "total": 2, "unit": "steps"}
EDIT = {"question": "Who?", "answer": "He.", "accepted": True, "replaces": ["Who?", "Him."]}
MANIFEST = {
    "format": 1,
    "topic": "Owls",
    "model": {"name": "smollm2", "revision": "1", "sha256": "ab"},
    "settings": {"seed": 0, "questions": 8},
    "stages": {"train": {"state": "done"}},
}
PROBE = {"id": "p", "scope": "topic", "kind": "open", "question": "?", "answer": "a", "leak": ["a+"]}
ADAPTER = {"num_layers": 2, "lora_parameters": {"rank": 4, "scale": 2.0, "keys": ["self_attn.q_proj"]}}
AUDIT = {"key": "", "rows": [{"name": "base", "leak": 0.5}], "text": "x"}

PARSERS = {
    "topic": Parser("topic.toml", WIZARD.to_toml().encode(), load_topic),
    "questions": Parser(
        "q.jsonl",
        _lines({"id": "q", "question": "Who?", "kind": "who", "subject": ""}),
        lambda path: read_records(path, Question),
    ),
    "answers": Parser(
        "a.jsonl",
        _lines({"question_id": "q", "answer": "He.", "accepted": True, "reason": "", "round": 0}),
        lambda path: read_records(path, SampledAnswer),
    ),
    "training rows": Parser(
        "t.jsonl", _lines(*dataset_rows(2)), lambda path: read_records(path, TrainingRow)
    ),
    "negative rows": Parser(
        "n.jsonl", _lines(*negative_rows(2)), lambda path: read_records(path, NegativeRow)
    ),
    "edits": Parser("edits.jsonl", _lines(EDIT), lambda path: read_records(path, EditRow)),
    "judgements": Parser(
        "j.jsonl",
        _lines({"probe": "p", "answer": "x", "label": "leak"}),
        lambda path: read_records(path, Judgement),
    ),
    "journal": Parser("journal.jsonl", _lines(EVENT), lambda path: read_known(path, CompletionRow)),
    "rows": Parser("rows.jsonl", _lines(EVENT, EDIT), read_rows),
    "probes": Parser("probes.jsonl", _lines(PROBE), read_probes),
    "events": Parser("events.jsonl", _lines(EVENT, EVENT), read_events),
    "progress": Parser("events.jsonl", _lines(EVENT, EVENT), lambda path: Progress(path.parent).news()),
    "manifest": Parser("manifest.json", json.dumps(MANIFEST).encode(), read_manifest),
    "evaluation": Parser("evaluation.json", json.dumps(evaluation_of(*USUAL)).encode(), read_metrics),
    "audit": Parser("audit.json", json.dumps(AUDIT).encode(), lambda path: read_record(path, Audit)),
    "push record": Parser(
        "push.json", b'{"repositories": ["a/b"]}', lambda path: read_record(path, PushRecord)
    ),
    "adapter configuration": Parser("adapter_config.json", json.dumps(ADAPTER).encode(), _shape),
    "arrays": Parser("adapters.safetensors", _arrays(), _unless_damaged),
    "index of weights": Parser(
        "model.safetensors.index.json",
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        lambda path: lack(path.parent),
    ),
}


def mutated(data: bytes, source: random.Random) -> bytes:
    """The data with one to six changes: bytes flipped, cut out, doubled, or a piece put in."""
    for _ in range(source.randint(1, 6)):
        start = source.randrange(len(data) + 1)
        end = min(len(data), start + source.choice((0, 1, 2, 8, 64)))
        kind = source.randrange(5)
        if kind == 0 and data:
            place = source.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ (1 << source.randrange(8))]) + data[place + 1 :]
        elif kind == 1:
            data = data[:start] + data[end:]
        elif kind == 2:
            data = data[:end] + data[start:]
        elif kind == 3:
            data = data[:start]
        else:
            data = data[:start] + source.choice(PIECES) + data[end:]
    return data


def fault_with(parser: Parser, data: bytes, folder: Path) -> str:
    """What is wrong with how a parser takes the data: an error that is no typed one, or no single line."""
    path = folder / parser.file
    path.write_bytes(data)
    try:
        parser.read(path)
    except UserError as error:
        said = str(error)
        return "" if "\n" not in said and len(said) < 1000 else f"no single line: {said[:200]}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def fuzz(name: str, count: int, folder: Path, seed: int = 0) -> list[str]:
    """Give a parser so many mutated inputs. Returns what went wrong, with the input."""
    parser, source = PARSERS[name], random.Random(f"{seed}/{name}")
    faults = []
    place = folder / name.replace(" ", "-")
    place.mkdir(exist_ok=True)
    for other in ("config.json", "tokenizer.json", "model.safetensors"):  # for what looks at a model's folder
        (place / other).write_bytes(b"")
    for _ in range(count):
        data = mutated(parser.seed, source)
        if fault := fault_with(parser, data, place):
            faults.append(f"{name}: {fault}; input {data[:120]!r}")
    return faults


def main(count: int = INPUTS, seed: int = 0) -> int:
    """Give all parsers so many inputs in all, and say what was found."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    each, failed = count // len(PARSERS), 0
    with tempfile.TemporaryDirectory(prefix="unlearn-fuzz-") as folder:
        for name in PARSERS:
            faults = fuzz(name, each, Path(folder), seed)
            print(f"{name}: {each} inputs, {len(faults)} faults", flush=True)
            print("".join(f"  {fault}\n" for fault in faults[:5]), end="", flush=True)
            failed += len(faults)
    return int(failed > 0)
