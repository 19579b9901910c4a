"""An OpenAI-compatible server on loopback: base and adapter are two model names over one copy of the weights.

mlx-lm's server does the work: requests for the same name are decoded in one batch, and between batches the
adapter is switched on or off. What it would do beyond that is refused: load whatever a client names, fetch
images from addresses that a client names, answer pages of other sites.
"""

import argparse
import io
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import APIHandler, LRUPromptCache, ModelProvider, ResponseGenerator

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.language_model.adapters import load_adapter
from unlearn_mlx.language_model.models import ModelSource, load_model
from unlearn_mlx.runs import Run
from unlearn_mlx.sharing.stopping import until_stop

HOST = "127.0.0.1"
LONGEST_REQUEST = 8 * 2**20  # bytes
MOST_TOKENS = 4096  # of one answer
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}


def model_names(run: Run) -> tuple[str, str]:
    """What base and adapter are called by clients."""
    base = Path(run.model_name).name
    return base, f"{base}-without-{run.topic.slug}"


class Server:
    """The server of one run. The model belongs to mlx-lm's generation thread, which loads it."""

    def __init__(self, source: ModelSource, adapter: Path, names: tuple[str, str], port: int) -> None:
        self.names = names
        logging.getLogger().setLevel(logging.WARNING)  # mlx-lm writes requests to the log
        try:
            self.http = _Http((HOST, port), self._handle)
        except OSError as error:
            raise EnvironmentCannot(f"port {port} is taken: choose another with '--port'") from error
        provider = _Provider(source, adapter, names)
        self.generator = _Generator(provider, LRUPromptCache(10))
        provider.is_loaded.wait()
        if provider.error is not None:
            self.http.server_close()
            raise provider.error

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"http://{HOST}:{self.http.server_address[1]}/v1"

    def serve(self) -> None:
        """Answer until ``close``, or Ctrl-C."""
        try:
            self.http.serve_forever()
        finally:
            self.generator.stop_and_join()
            self.http.server_close()

    def close(self) -> None:
        """End ``serve``, from another thread."""
        self.http.shutdown()

    def _handle(self, *arguments: Any) -> "_Handler":
        return _Handler(self.generator, *arguments, system_fingerprint="unlearn-mlx")


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error."""


class _Generator(ResponseGenerator):
    def generate(self, request: Any, generation_args: Any, progress_callback: Any = None) -> tuple[Any, Any]:
        """As mlx-lm does, but for stop words, which are found in the text."""
        words = generation_args.stop_words
        without = replace(generation_args, stop_words=[])
        context, responses = super().generate(request, without, progress_callback)
        return context, until_stop(responses, words)

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> tuple[Any, ...]:
        """Token ids as everywhere else here: words in a message cannot pose as special tokens."""
        model = self.model_provider.chat_model
        if request.request_type == "chat":
            prompt = model.chat_tokens(request.messages)
        else:
            prompt = model.text_tokens(request.prompt)
        return prompt, [prompt], ["assistant"], "normal", None


class _Provider(ModelProvider):
    """One model; its name says whether the adapter is on. Used by the generation thread alone."""

    def __init__(self, source: ModelSource, adapter: Path, names: tuple[str, str]) -> None:
        super().__init__(_server_settings())
        self.source, self.adapter_folder, self.names = source, adapter, names
        self.is_loaded = threading.Event()
        self.error: UserError | None = None

    def load_default(self) -> None:
        try:
            self.chat_model = load_model(self.source)
            self.adapter = load_adapter(self.chat_model.model, self.adapter_folder)
        except UserError as error:  # it is the starting thread's to handle
            self.error = error
            raise
        finally:
            self.is_loaded.set()
        self.model, self.tokenizer = self.chat_model.model, self.chat_model.tokenizer
        self.is_batchable = all(hasattr(entry, "merge") for entry in make_prompt_cache(self.model))

    def load(
        self, model_path: str, adapter_path: Any = None, draft_model_path: Any = None
    ) -> tuple[Any, Any]:
        self.adapter.switch(model_path == self.names[1])
        self.model_key = (model_path, None, None)  # caches of keys and values never cross it
        return self.model, self.tokenizer

    def reset(self) -> None:
        super().reset()
        for name in ("chat_model", "adapter"):  # not there where loading failed
            self.__dict__.pop(name, None)
        # A thread that ends with streams of its own makes mlx abort when the process ends.
        mx.clear_streams()


class _Handler(APIHandler):
    rfile: Any

    def do_POST(self) -> None:
        if not self._is_local():
            return
        body, wrong = self._body()
        if wrong is None:
            wrong = _wrong_in(body, self._names)
        if wrong is not None:
            status, message, code = wrong
            self._refuse(status, message, code)
            return
        super().do_POST()

    def do_GET(self) -> None:
        if self._is_local():
            super().do_GET()

    def handle_models_request(self) -> None:
        """The two names, and nothing of what else the machine has."""
        models = [{"id": name, "object": "model", "created": self.created} for name in self._names]
        asked = self.path.removeprefix("/v1/models").strip("/")
        if not asked:
            self._send(200, {"object": "list", "data": models})
        elif asked in self._names:
            self._send(200, models[self._names.index(asked)])
        else:
            self._refuse(404, f"no model '{asked}': there are {', '.join(self._names)}", "model_not_found")

    def log_message(self, *_: Any) -> None:
        """What people ask is nobody's business: no request is logged."""

    @property
    def _names(self) -> tuple[str, str]:
        names: tuple[str, str] = self.response_generator.model_provider.names
        return names

    def _is_local(self) -> bool:
        """Whether the page or program that asks means this machine: no site may speak through a browser."""
        host = re.sub(r":\d+$", "", self.headers.get("Host") or "")
        if host in LOCAL_NAMES and not self.headers.get("Origin"):
            return True
        self._refuse(403, "this server answers programs on its own machine only", "forbidden")
        return False

    def _body(self) -> tuple[Any, tuple[int, str, str] | None]:
        """The request's body; mlx-lm's handler reads it again."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return None, (411, "Content-Length is missing", "invalid_request")
        if int(length) > LONGEST_REQUEST:
            return None, (413, f"a request has at most {LONGEST_REQUEST} bytes", "invalid_request")
        data = self.rfile.read(int(length))
        self.rfile = io.BytesIO(data)
        try:
            return json.loads(data), None
        except (ValueError, RecursionError):
            return None, (400, "the request is not JSON", "invalid_request")

    def _refuse(self, status: int, message: str, code: str) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        self._send(status, {"error": {"message": message, "type": kind, "code": code, "param": None}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self._set_completion_headers(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _wrong_in(body: Any, names: tuple[str, str]) -> tuple[int, str, str] | None:
    """Status, message and code of what is wrong with a request; None where nothing is."""
    if not isinstance(body, dict):
        return 400, "the request is no JSON object", "invalid_request"
    model = body.get("model")
    if model not in names:
        return 404, f"no model '{model}': there are {', '.join(names)}", "model_not_found"
    for key in ("adapters", "draft_model", "chat_template_kwargs", "role_mapping", "tools"):
        if body.get(key):
            return 400, f"'{key}' is not served here", "invalid_request"
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 1
    if isinstance(most, int) and most > MOST_TOKENS:
        return 400, f"max_tokens is at most {MOST_TOKENS}", "invalid_request"
    options = body.get("stream_options")
    if options is not None and not (
        isinstance(options, dict) and isinstance(options.get("include_usage"), bool)
    ):
        return 400, "'stream_options' are {\"include_usage\": true or false}", "invalid_request"
    stop = body.get("stop") or []
    if not isinstance(stop, str) and not (
        isinstance(stop, list) and len(stop) <= 16 and all(isinstance(word, str) for word in stop)
    ):
        return 400, "'stop' is a text or at most 16 texts", "invalid_request"
    if "messages" not in body:
        return (
            None
            if isinstance(body.get("prompt"), str)
            else (400, "'messages' are missing", "invalid_request")
        )
    messages = body["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        return 400, "'messages' are a list of {role, content} with content as text", "invalid_request"
    return None


def _is_message(message: Any) -> bool:
    # A content in parts could name pictures for the server to fetch: text alone is taken.
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
    )


def _server_settings() -> argparse.Namespace:
    """What mlx-lm's server reads of its own command line."""
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=3,
        trust_remote_code=False,
        pipeline=False,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args={},
        allowed_origins=[],
        temp=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=512,
        decode_concurrency=32,
        prompt_concurrency=8,
        prefill_step_size=2048,
        prompt_cache_size=10,
        prompt_cache_bytes=None,
        kv_bits=None,
        kv_group_size=64,
        quantized_kv_start=0,
        log_level="WARNING",
    )


def serve(run: Run, source: ModelSource, port: int, ready: Callable[[Server], None]) -> None:
    """Serve a run's base and adapter until Ctrl-C; ``ready`` is called once clients may come.

    Raises:
        EnvironmentCannot: where the port is taken.
    """
    server = Server(source, run.file("adapter"), model_names(run), port)
    ready(server)
    server.serve()
