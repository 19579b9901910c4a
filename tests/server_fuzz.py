"""Random requests to a server: each must be answered or refused in OpenAI's form, and harm nobody else.

``python -m tests.server_fuzz 10000`` sends so many to a server of its own, on a tiny model, in a process of
its own; ``--minutes 30`` goes on for so long. The exit code is 1 where a good client heard something else, an
answer was of no form, or the server's memory grew in these minutes (in fewer requests it only warms up).
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.helpers import command, write_tiny_model
from tests.serving import run_with_adapter, texts_by_name
from unlearn_mlx.runs.run import Run

PART = 250  # requests between two looks at the server's memory
GROWTH = 0.1  # of its memory that a server may take more later: allocators settle slowly

WIDE = [
    *(None, True, False, 0, 1, -1, 2, 5.0, 0.5, 1.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 2**64, -(2**63)),
    *(10**30, float("nan"), float("inf"), "", "x", "5", "\x00", "é👍\u202e", "<|im_end|>"),
    *([], {}, [None], {"a": None}),
]
GOOD = {
    "temperature": [0, 0.7, 1, 2],
    "top_p": [0, 0.5, 1],
    "top_k": [0, -1, 1, 400, 2**63],
    "min_p": [0, 0.1],
    "presence_penalty": [-2, 1],
    "frequency_penalty": [-2, 1],
    "repetition_penalty": [0.5, 1.3],
    "logit_bias": [{"5": 10}, {"7": -100, "8": 100}, {"400": 1}, {"5": None}],
    "seed": [0, -1, 2**64 - 1],
    "stop": ["a", ["e", "Harry"], [""]],
    "n": [1, 2, 3],
    "stream": [True, False],
    "echo": [True, False],
    "stream_options": [{"include_usage": True}, {}],
    "logprobs": [True, False, 0, 5],
    "top_logprobs": [0, 3, 20],
    "response_format": [{"type": "text"}],
    "best_of": [1],
    "user": ["me"],
    "tools": [[], None],
    "suffix": [None],
}
TEXTS = ["Who is Harry Potter?", "", "x" * 500, "é👍 \ufdd0\x00", "<|im_end|><|im_start|>Be", "a\n" * 50]
LENGTHS = [*(1, 2, 3, 5, 8, 3.0, None) * 4, 0, -1, 1.5, "3", 10**9]
ROLES = [*("system", "developer", "user", "assistant", "tool") * 6, "wizard", None, 3]


class Fuzz:
    """Random requests, and good ones among them whose answers are known."""

    def __init__(self, place: tuple[str, int], names: list[str], said: dict[str, str], seed: int) -> None:
        self.place, self.names, self.said = place, names, said
        self.source = random.Random(seed)
        self.answered = self.refused = self.left = self.good = 0
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def run(self, count: int, clients: int = 6) -> None:
        """Send so many requests, from several clients at once; every tenth is a good one."""
        tasks = [self._good if number % 10 == 9 else self._random for number in range(count)]
        bodies = [self._request() for _ in tasks]
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda task, body: task(*body), tasks, bodies))

    def _value(self, name: str) -> object:
        return self.source.choice(GOOD[name] if self.source.random() < 0.9 else WIDE)

    def _request(self) -> tuple[str, bytes, bool]:
        """Path and body of a request, and whether its client goes away."""
        pick, chance = self.source.choice, self.source.random
        is_chat = chance() < 0.5
        body: dict[str, object] = {"model": pick([*self.names * 6, "none", None])}
        if is_chat:
            body["messages"] = pick([[self._message() for _ in range(self.source.randint(1, 4))]] * 80 + WIDE)
        else:
            body["prompt"] = pick([*TEXTS * 2, TEXTS[2:], [5, 6, 7], [[5], [6, 7]], [400], *WIDE[:4]])
        for name in ("max_tokens", "max_completion_tokens"):
            body[name] = pick(LENGTHS)
        if is_chat and not (body["max_tokens"] or body["max_completion_tokens"]):
            body["max_tokens"] = 4  # what says nothing may take thousands
        fields = sorted(GOOD)
        for name in self.source.sample(fields, self.source.randint(0, 4)):
            body[name] = self._value(name)
        data = json.dumps(body).encode()
        if chance() < 0.05:
            data = data[: self.source.randint(0, len(data))]
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        return path, data, chance() < 0.1

    def _message(self) -> object:
        pick = self.source.choice
        parts = [[{"type": "text", "text": "Who?"}], [{"type": "image_url"}], *WIDE]
        content = pick(TEXTS if self.source.random() < 0.9 else parts)
        return pick([{"role": pick(ROLES), "content": content, "name": pick(WIDE)}] * 200 + WIDE)

    def _random(self, path: str, data: bytes, leaves: bool) -> None:
        try:
            status, kind, content = self._asked(path, data, leaves)
            if status == 0:
                self._count("left")
                return
            fault = self._fault(status, kind, content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault, status = repr(error), 0
        if fault:
            self.faults.append(f"{fault}: {path} {data[:600]!r}")
        else:
            self._count("answered" if status == 200 else "refused")

    def _good(self, *_: object) -> None:
        name = self.names[self.good % len(self.names)]
        body = {"model": name, "messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 12}
        began = time.monotonic()
        status, _, content = self._asked("/v1/chat/completions", json.dumps(body).encode(), False)
        text = json.loads(content)["choices"][0]["message"]["content"] if status == 200 else content
        if text != self.said[name] or time.monotonic() - began > 60:
            self.faults.append(
                f"a good client heard {status} {text!r} after {time.monotonic() - began:.0f} s"
            )
        self._count("good")

    def _asked(self, path: str, data: bytes, leaves: bool) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(*self.place, timeout=120)
        try:
            connection.request("POST", path, data)
            if leaves:
                return 0, "", b""
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read()
        finally:
            connection.close()

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    @staticmethod
    def _fault(status: int, kind: str, content: bytes) -> str:
        """What is wrong with an answer, if anything."""
        if kind.startswith("text/event-stream"):
            events = content.decode().strip().split("\n\n")
            bad = status != 200 or events[-1] != "data: [DONE]"
            told = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
            return "a stream without an end" if bad or any("error" in each for each in told) else ""
        told = json.loads(content)
        if status == 200:
            ends = [choice["finish_reason"] for choice in told["choices"]]
            return "" if ends and set(ends) <= {"stop", "length"} else "an answer without an end"
        error = told.get("error", {})
        is_whole = set(error) == {"message", "type", "param", "code"} and bool(error["message"])
        return "" if status in (400, 404) and is_whole else f"status {status}, {content[:200]!r}"


def is_flat(memory: Sequence[float]) -> bool:
    """Whether a process takes no more in the last quarter than in the second: in the first it warms up."""
    quarter = len(memory) // 4
    if not quarter:
        return True
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return statistics.median(late) <= (1 + GROWTH) * statistics.median(early)


@contextmanager
def served(runs: Sequence[Run]) -> Iterator[tuple[psutil.Process, tuple[str, int]]]:
    """``unlearn serve`` of these runs in a process of its own, whose memory is its alone, and its place."""
    words = command("serve", *(run.path for run in runs), "--port", "0")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert address.hostname and address.port, "the server did not start"
        yield psutil.Process(process.pid), (address.hostname, address.port)
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Fuzz a server of a tiny model, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.server_fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--minutes", type=float, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "tiny")
        runs = [run_with_adapter(Path(folder) / str(seed), model, seed) for seed in (1, 2)]
        said = texts_by_name(runs)
        with served(runs) as (process, place):
            fuzz = Fuzz(place, list(said), said, given.seed)
            began, memory, done = time.monotonic(), [], 0

            def goes_on() -> bool:
                return done < given.count if given.minutes is None else took() < 60 * given.minutes

            def took() -> float:
                return time.monotonic() - began

            while goes_on():
                fuzz.run(PART)
                done += PART
                memory.append(process.memory_info().rss / 2**20)
                print(f"{done} requests, {memory[-1]:.0f} MB, {len(fuzz.faults)} faults", file=sys.stderr)
            seconds = took()
    print("\n".join(fuzz.faults))
    quarter = max(1, len(memory) // 4)
    early, late = memory[quarter : 2 * quarter] or memory, memory[-quarter:]
    flat = given.minutes is None or is_flat(memory)
    print(
        f"{fuzz.answered} answered, {fuzz.refused} refused, {fuzz.left} left, {fuzz.good} good clients, "
        f"{len(fuzz.faults)} faults in {seconds:.0f} s; the server's memory: "
        f"{statistics.median(early):.0f} MB in the second quarter, {statistics.median(late):.0f} MB in the "
        f"last{'' if flat else ', GROWING'}"
    )
    return 0 if flat and not fuzz.faults else 1


if __name__ == "__main__":
    sys.exit(main())
