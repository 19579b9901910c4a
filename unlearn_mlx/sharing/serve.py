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
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlx.core as mx
from jinja2 import TemplateError
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import APIHandler, LRUPromptCache, ModelProvider, ResponseGenerator

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import ModelSource
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.stopping import until_stop

HOST = "127.0.0.1"
LONGEST_REQUEST = 8 * 2**20  # bytes
MOST_TOKENS = 4096  # of one answer
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
# Where clients ask, and what they must say there.
ADDRESSES = {
    "/v1/chat/completions": "messages",
    "/chat/completions": "messages",
    "/v1/completions": "prompt",
}
NOT_SERVED = (
    *("adapters", "draft_model", "chat_template_kwargs", "role_mapping"),
    *("tools", "functions", "audio", "echo", "suffix"),
)


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


class _Refused(BaseException):
    """A request that is answered with an error.

    No Exception, because mlx-lm's handler takes each of those for a model that is not there.
    """

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error."""


class _Generator(ResponseGenerator):
    def generate(self, request: Any, generation_args: Any, progress_callback: Any = None) -> tuple[Any, Any]:
        """As mlx-lm does, but for stop words, which are found in the text."""
        words = generation_args.stop_words
        without = replace(generation_args, stop_words=[])
        try:
            context, responses = super().generate(request, without, progress_callback)
        except TemplateError as error:  # roles that the model's template has no place for
            raise _Refused(400, f"the model's chat template refuses the messages: {error}") from error
        except Exception as error:
            raise _Refused(500, f"the answer failed: {error}", "server_error") from error
        return context, until_stop(responses, words)

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> tuple[Any, ...]:
        """Token ids as everywhere else here: words in a message cannot pose as special tokens."""
        model = self.model_provider.chat_model
        if request.request_type == "chat":
            prompt = model.chat_tokens(request.messages)
        else:
            prompt = model.document_tokens(request.prompt)
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
        if (model := self.__dict__.pop("chat_model", None)) is not None:  # not there where loading failed
            model.release()
        self.__dict__.pop("adapter", None)
        # A thread that ends with streams of its own makes mlx abort when the process ends.
        mx.clear_streams()


class _Handler(APIHandler):
    rfile: Any

    def do_POST(self) -> None:
        try:
            self._check_local()
            asked = _checked(self._body(), self.path, self._names)
            data = json.dumps(asked).encode()  # mlx-lm's handler reads it again
            self.rfile = io.BytesIO(data)
            self.headers.replace_header("Content-Length", str(len(data)))
            super().do_POST()
        except _Refused as refused:
            self._refuse(refused)

    def do_GET(self) -> None:
        try:
            self._check_local()
            if not re.fullmatch(r"/v1/models(/.*)?|/health", self.path):
                raise _Refused(404, f"nothing is served at {self.path[:80]}", "not_found")
            super().do_GET()
        except _Refused as refused:
            self._refuse(refused)

    def validate_model_parameters(self) -> None:
        """As mlx-lm does, but the answer has the form that clients read."""
        try:
            super().validate_model_parameters()
        except ValueError as error:
            raise _Refused(400, str(error)) from error

    def handle_models_request(self) -> None:
        """The two names, and nothing of what else the machine has."""
        models = [{"id": name, "object": "model", "created": self.created} for name in self._names]
        asked = self.path.removeprefix("/v1/models").strip("/")
        if not asked:
            self._send(200, {"object": "list", "data": models})
        elif asked in self._names:
            self._send(200, models[self._names.index(asked)])
        else:
            raise _unknown(asked, self._names)

    def log_message(self, *_: Any) -> None:
        """What people ask is nobody's business: no request is logged."""

    @property
    def _names(self) -> tuple[str, str]:
        names: tuple[str, str] = self.response_generator.model_provider.names
        return names

    def _check_local(self) -> None:
        """Let only a page or program through that means this machine: no site may speak through a browser."""
        host = re.sub(r":\d+$", "", self.headers.get("Host") or "")
        if host not in LOCAL_NAMES or self.headers.get("Origin"):
            raise _Refused(403, "this server answers programs on its own machine only", "forbidden")

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(411, "Content-Length is missing")
        if int(length) > LONGEST_REQUEST:
            raise _Refused(413, f"a request has at most {LONGEST_REQUEST} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _Refused(400, "the request is not JSON") from None

    def _refuse(self, refused: _Refused) -> None:
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
        error = {"message": refused.message, "type": kind, "code": refused.code, "param": None}
        self._send(refused.status, {"error": error})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self._set_completion_headers(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _checked(body: Any, path: str, names: tuple[str, str]) -> dict[str, Any]:
    """A request as mlx-lm's handler may have it: what is null in it is what is left out.

    Raises:
        _Refused: where something is wrong with it.
    """
    needed = ADDRESSES.get(path)
    if needed is None:
        raise _Refused(404, f"nothing is served at {path[:80]}", "not_found")
    if not isinstance(body, dict):
        raise _Refused(400, "the request is no JSON object")
    asked = {key: value for key, value in body.items() if value is not None}
    if asked.get("model") not in names:
        raise _unknown(asked.get("model"), names)
    for key in NOT_SERVED:
        if asked.get(key):
            raise _Refused(400, f"'{key}' is not served here")
    if asked.get("n", 1) != 1 or asked.get("best_of", 1) != 1:
        raise _Refused(400, "one answer a request is served here: leave out 'n' and 'best_of'")
    if asked.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise _Refused(400, "'response_format' is text here")
    for key in ("max_completion_tokens", "max_tokens"):
        if isinstance(asked.get(key), int) and asked[key] > MOST_TOKENS:
            raise _Refused(400, f"{key} is at most {MOST_TOKENS}")
    options = asked.get("stream_options")
    if options is not None and not (
        isinstance(options, dict) and isinstance(options.get("include_usage"), bool)
    ):
        raise _Refused(400, "'stream_options' are {\"include_usage\": true or false}")
    stop = asked.get("stop", [])
    if not isinstance(stop, str) and not (
        isinstance(stop, list) and len(stop) <= 16 and all(isinstance(word, str) for word in stop)
    ):
        raise _Refused(400, "'stop' is a text or at most 16 texts")
    if needed == "prompt":
        if not isinstance(asked.get("prompt"), str):
            raise _Refused(400, "'prompt' is missing, or no text")
        return asked
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _Refused(400, "'messages' are missing")
    return {**asked, "messages": [_message(message) for message in messages]}


def _message(message: Any) -> dict[str, str]:
    """A message with its text in one piece; a part that is none could name a picture to be fetched."""
    if isinstance(message, dict) and message.get("role") in ("system", "user", "assistant"):
        content = message.get("content")
        if isinstance(content, str):
            return {"role": message["role"], "content": content}
        if isinstance(content, list) and content and all(map(_is_text, content)):
            return {"role": message["role"], "content": "".join(part["text"] for part in content)}
    raise _Refused(400, "'messages' are a list of {role, content} with content as text")


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _unknown(model: Any, names: tuple[str, str]) -> _Refused:
    return _Refused(404, f"no model '{str(model)[:80]}': there are {', '.join(names)}", "model_not_found")


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
