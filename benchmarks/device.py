"""Llama-3-8B's shape in 4 bits on this device, beside mlx-lm's own calls: one run of a few minutes.

``python -m benchmarks.device --out FOLDER`` makes the weights on the spot, at random, so that nothing is
fetched, and measures decoding, training, their parts, and the planner's figures. Each part is guarded: what
fails is written down in its place, and ``FOLDER/device.json`` and ``device.md`` are whole after every part.
``--layers 2 --hidden 256`` tries all of it on a CPU. Beside mlx-lm it needs pydantic, psutil, platformdirs,
filelock, rapidfuzz and snowballstemmer, and for Llama 3's own tokenizer llama-models.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.utils import dequantize_model, load_tokenizer

from benchmarks.side_by_side import in_turns, machine, peak_bytes_of, seconds_of
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.models.registry import ModelSource
from unlearn_mlx.runs.files import write_atomically

SECONDS = 280  # after so many no further part begins
LLAMA3 = {
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}
GROUP_SIZE, BITS = 64, 4
EMBEDDING = "model.embed_tokens"  # the hub's copy of Llama-3-8B leaves it in half precision
REPEATS = 2
PROMPTS = 16
ANSWER_TOKENS = 64
TRAINED_STEPS, BATCH_SIZE = 6, 8


@dataclass
class Report:
    """What was found so far, on disk after every part."""

    folder: Path
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one part; whatever goes wrong in it is written down."""
        started = time.perf_counter()
        if started - self.began > self.seconds:
            self.found[name] = {"left out": "no time was left"}
        else:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            try:
                self.found[name] = work()
            except Exception as error:  # the next part may still work
                reason = f"{type(error).__name__}: {error}"[:500]
                self.found[name] = {"failed": reason, "where": traceback.format_exc().splitlines()[-12:]}
            self.found[name]["took"] = round(time.perf_counter() - started, 1)
        mx.clear_cache()
        self.write()

    def write(self) -> None:
        """All parts as JSON, and as a table of one line a figure."""
        write_atomically(self.folder / "device.json", json.dumps(self.found, indent=2) + "\n")
        lines = ["| part | what | figure |", "|---|---|---|"]
        for part, values in self.found.items():
            lines += [f"| {part} | {name} | {value} |" for name, value in _leaves(values)]
        write_atomically(self.folder / "device.md", "\n".join(lines) + "\n")


def _leaves(values: dict[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}, ")
        elif name != "where":
            yield above + name, f"{value:.4g}" if isinstance(value, float) else str(value)


def random_model(folder: Path, layers: int, hidden: int) -> ChatModel:
    """A Llama 3 with random weights in 4 bits: its arrays are made quantized, one layer after the other."""
    configuration = {
        **LLAMA3,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": hidden * 7 // 2,
        "quantization": {"group_size": GROUP_SIZE, "bits": BITS},
    }
    tokenizer_folder = _tokenizer_folder(folder)
    (folder / "config.json").write_text(json.dumps(configuration))
    model = llama.Model(llama.ModelArgs.from_dict(configuration))
    # Nothing of the float weights is ever computed: mlx only does so when it is asked.
    nn.quantize(
        model,
        GROUP_SIZE,
        BITS,
        class_predicate=lambda path, module: hasattr(module, "to_quantized") and path != EMBEDDING,
    )
    for part in [*model.layers, model]:
        values = [
            (name, _random(name, value, hidden))
            for name, value in tree_flatten(part.parameters())
            if part is not model or ".layers." not in name
        ]
        part.update(tree_unflatten(values))
        mx.eval([value for _, value in values])
    if not current_device().is_gpu:  # as inference/loading.py does
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    model.eval()
    chat_model = ChatModel(
        model, load_tokenizer(tokenizer_folder), ModelSource("random-llama3", folder, "random", "random")
    )
    # Random answers shall not end by themselves.
    chat_model.stop_tokens = frozenset()
    chat_model.tokenizer.eos_token_ids = set()
    return chat_model


def _random(name: str, value: mx.array, hidden: int) -> mx.array:
    if value.dtype == mx.uint32:
        # Two halves, since random integers end at 2**31.
        halves = [mx.random.randint(0, 2**16, value.shape, mx.uint32) for _ in range(2)]
        return halves[0] * 2**16 + halves[1]
    if value.ndim == 1:
        return mx.ones(value.shape, mx.float16)
    # Numbers of 4 bits have a deviation of 4.6 around 7.5: weights get one that keeps the layers' widths.
    step = 1 / (4.6 * hidden**0.5)
    if name.endswith("scales"):
        return mx.full(value.shape, step, mx.float16)
    if name.endswith("biases"):
        return mx.full(value.shape, -7.5 * step, mx.float16)
    return mx.random.normal(value.shape, mx.float16)


def _tokenizer_folder(folder: Path) -> Path:
    """Llama 3's tokenizer where llama-models is installed, else the tests' small one."""
    try:
        from tests.architectures import write_llama3_model

        return write_llama3_model(folder / "tokenizer")
    except ImportError:
        from tests.helpers import write_tiny_model

        return write_tiny_model(folder / "small-tokenizer")


def model_facts(model: ChatModel) -> dict[str, Any]:
    """What was made, and whether its layers see shared prefixes."""
    arrays = [value for _, value in tree_flatten(model.model.parameters())]
    return {
        "layers": len(model.model.layers),
        "weights_gigabytes": sum(array.nbytes for array in arrays) / 2**30,
        "sees_prefixes": model.sees_prefixes,
        "tokenizer": len(model.tokenizer),
        "device_info": {name: str(value) for name, value in mx.device_info().items()},
    }


def one_answer(model: ChatModel) -> dict[str, Any]:
    """Tokens a second of one answer, after its first token, and seconds to that one."""
    from mlx_lm import stream_generate

    from unlearn_mlx.inference.generation import Request, decode

    prompt = model.chat_tokens([{"role": "user", "content": "Who is Harry Potter, and where does he live?"}])
    request = Request("0", tuple(prompt), ANSWER_TOKENS)
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "ours": lambda: decode(model, [request], 0),
        "mlx_lm.generate": lambda: stream_generate(
            model.model, model.tokenizer, prompt, max_tokens=ANSWER_TOKENS
        ),
    }
    first: dict[str, float] = {}

    def rate(name: str) -> float:
        began = time.perf_counter()
        marks = [time.perf_counter() for _ in ways[name]()]
        first[name] = marks[0] - began
        return (len(marks) - 1) / (marks[-1] - marks[0])

    for name in ways:
        rate(name)  # compiles
    rates = in_turns({name: partial(rate, name) for name in ways}, REPEATS)
    return {"prompt_tokens": len(prompt), "tokens_per_second": rates, "seconds_to_first_token": dict(first)}


def many_answers(model: ChatModel, prompts: Sequence[Sequence[int]], only: str = "") -> dict[str, Any]:
    """Tokens a second of a batch of answers, their prompts included, by ways of ours and by mlx-lm's."""
    from mlx_lm import batch_generate

    from unlearn_mlx.inference.generation import Request, generate
    from unlearn_mlx.inference.shared_prefix import common_prefix

    requests = [Request(str(n), tuple(prompt), ANSWER_TOKENS) for n, prompt in enumerate(prompts)]
    drawn = [replace(request, temperature=0.8) for request in requests]
    model.decode_batch_size = len(prompts)

    def ours(asked: Sequence[Request] = requests, copied: bool = True, on_host: bool = False) -> None:
        model.copies_prefix = copied
        device = Device("cpu", "", 0, 1) if on_host else current_device()
        with patch("unlearn_mlx.inference.batch.current_device", lambda: device):
            generate(model, asked, 0)

    ways: dict[str, Callable[[], object]] = {
        "ours, prefix copied": ours,
        "ours, prefix shared": partial(ours, copied=False),
        "ours at a temperature": partial(ours, drawn),
        "ours at a temperature, drawn on the host": partial(ours, drawn, on_host=True),
        "batch_generate": lambda: batch_generate(
            model.model,
            model.tokenizer,
            [list(prompt) for prompt in prompts],
            max_tokens=ANSWER_TOKENS,
            completion_batch_size=len(prompts),
            prefill_batch_size=len(prompts),
        ),
    }
    ways = {name: work for name, work in ways.items() if name.startswith(only)}
    peaks = {name: peak_bytes_of(work) / 2**30 for name, work in ways.items()}  # and compiles

    def rate(work: Callable[[], object]) -> float:
        return len(prompts) * ANSWER_TOKENS / seconds_of(work)

    rates = in_turns({name: partial(rate, work) for name, work in ways.items()}, REPEATS)
    return {
        "answers": len(prompts),
        "longest_prompt": max(map(len, prompts)),
        "shared": len(common_prefix(prompts)),
        "tokens_per_second": rates,
        "peak_gigabytes": peaks,
    }


def guarded_answers(model: ChatModel, count: int = PROMPTS) -> dict[str, Any]:
    """Answers behind the guardrail, whose prefix all of them share."""
    from benchmarks.generation import guarded_prompts

    return many_answers(model, guarded_prompts(model, count))


def plain_answers(model: ChatModel) -> dict[str, Any]:
    """Answers to plain questions, which share the chat template's beginning alone."""
    from benchmarks.side_by_side import shipped_questions

    questions = shipped_questions()[:PROMPTS]
    return many_answers(model, [model.chat_tokens([{"role": "user", "content": each}]) for each in questions])


def steps_of_decoding(model: ChatModel) -> dict[str, Any]:
    """Milliseconds of a decoding step by rows: the model's layers, and drawing the tokens."""
    from benchmarks.device_parts import decoding_step
    from unlearn_mlx.compute.batch_size import decode_batch_size
    from unlearn_mlx.compute.prefix_copies import copies_prefix

    found: dict[str, Any] = {f"{rows} rows": decoding_step(model, rows) for rows in (1, 16, 64)}
    # What a run would choose here.
    model.decode_batch_size = model.copies_prefix = None
    return {**found, "chosen rows": decode_batch_size(model), "copies the prefix": copies_prefix(model)}


def attention(model: ChatModel) -> dict[str, Any]:
    """Microseconds of one layer's attention behind a shared prefix, by the ways there are."""
    from benchmarks.device_parts import attention_ways

    return {
        f"{rows} rows of {length} tokens": attention_ways(model, rows, length)
        for rows, length in ((1, 1), (16, 1), (64, 1), (16, 48))
    }


def training(model: ChatModel) -> dict[str, Any]:
    """Answer tokens a second of training on the same batches."""
    from benchmarks.device_parts import training_ways

    return training_ways(model, TRAINED_STEPS, BATCH_SIZE)


def memory(model: ChatModel) -> dict[str, Any]:
    """The planner's figures against mlx's own count of its peak."""
    from benchmarks.planner import compared
    from unlearn_mlx.compute.model_shape import shape_from

    arrays = [value for _, value in tree_flatten(model.model.parameters())]
    configuration = json.loads((model.source.folder / "config.json").read_text())
    shape = shape_from(configuration, sum(array.nbytes for array in arrays))
    return compared(model, shape, current_device().is_gpu)


def half_precision(model: ChatModel) -> dict[str, Any]:
    """The same without 4 bits, in 16 GB: for these mlx has other products. The model stays so."""
    from benchmarks.device_parts import training_ways
    from benchmarks.generation import guarded_prompts

    model.model = dequantize_model(model.model)
    mx.eval(model.model.parameters())
    return {
        "16 guarded answers": many_answers(model, guarded_prompts(model, PROMPTS), "ours, prefix copied"),
        "training": training_ways(model, TRAINED_STEPS, BATCH_SIZE, "ours, compiled"),
        "one answer": one_answer(model),
    }


PARTS: dict[str, Callable[[ChatModel], dict[str, Any]]] = {
    "model": model_facts,
    "training": training,
    "one answer": one_answer,
    "16 guarded answers": guarded_answers,
    "16 plain answers": plain_answers,
    "64 guarded answers": partial(guarded_answers, count=64),
    "a step of decoding": steps_of_decoding,
    "attention": attention,
    "memory": memory,
    "half precision": half_precision,
}


def main() -> int:
    """Measure all parts, or those named; the table goes to stdout as well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of device.json and device.md")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 256")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no part begins")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="these parts alone, in this order")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    report = Report(given.out, given.seconds)
    report.part("machine", machine)
    with tempfile.TemporaryDirectory() as folder:
        made: list[ChatModel] = []

        def make() -> dict[str, Any]:
            made.append(random_model(Path(folder), given.layers, given.hidden))
            return {}

        report.part("weights", make)
        for name in (given.only or PARTS) if made else ():
            report.part(name, partial(PARTS[name], made[0]))
    print((given.out / "device.md").read_text())
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
