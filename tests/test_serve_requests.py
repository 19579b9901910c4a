"""Requests that are refused: each with its status, in OpenAI's form, naming the field. None ends anything."""

import json
import shutil
import socket
import time

import openai
import pytest

from tests.helpers import QUESTIONS
from tests.serving import ASKED, answer, post, raw, run_with_adapter, serving

NAN = float("nan")

WRONG_IN_BOTH = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", "0.5"),
    ("temperature", NAN),
    ("temperature", float("inf")),
    ("temperature", True),
    ("temperature", 2.5),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("top_p", NAN),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", NAN),
    ("min_p", 2),
    ("presence_penalty", NAN),
    ("frequency_penalty", 3),
    ("repetition_penalty", 0),
    ("repetition_penalty", 1e-300),
    ("repetition_penalty", NAN),
    ("max_tokens", 10**9),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", "5"),
    ("max_tokens", True),
    ("seed", 2**64),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("seed", "x"),
    ("logit_bias", {"5": "x"}),
    ("logit_bias", {"5": None}),
    ("logit_bias", {"5": NAN}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"400": 1}),
    ("logit_bias", {"999999999999999999999": 1}),
    ("logit_bias", [1]),
    ("stop", 3),
    ("stop", ["a"] * 17),
    ("stop", [1]),
    ("stop", ["x" * 10_000]),
    ("n", 0),
    ("n", 17),
    ("n", "2"),
    ("stream", "yes"),
    ("stream_options", 3),
    ("stream_options", {"include_usage": "yes"}),
    ("adapters", "/etc"),
    ("draft_model", "x"),
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("functions", [{"name": "f"}]),
    ("response_format", {"type": "json_object"}),
    ("response_format", "json"),
    ("modalities", ["audio"]),
    ("suffix", "end"),
    ("model", 5),
    ("model", None),
]

WRONG_IN_CHAT = [
    ("max_tokens", 0),
    ("max_completion_tokens", 0),
    ("max_completion_tokens", 10**9),
    ("messages", []),
    ("messages", "x"),
    ("messages", None),
    ("messages", [3]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": []}]),
    ("messages", [{"role": "wizard", "content": "x"}]),
    ("messages", [{"content": "x"}]),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}]}],
    ),
    ("logprobs", 5),
    ("top_logprobs", 21),
    ("top_logprobs", NAN),
]

WRONG_IN_COMPLETIONS = [
    ("prompt", ""),
    ("prompt", []),
    ("prompt", None),
    ("prompt", 5),
    ("prompt", [""]),
    ("prompt", [[]]),
    ("prompt", ["x", ""]),
    ("prompt", [1, "x"]),
    ("prompt", [[1], [True]]),
    ("prompt", [400]),
    ("prompt", [-1]),
    ("prompt", [2**70]),
    ("prompt", [1.5]),
    ("prompt", ["x"] * 257),
    ("prompt", {"text": "x"}),
    ("logprobs", 21),
    ("logprobs", True),
    ("echo", "yes"),
    ("best_of", 3),
]


def refusal(server, path, body):
    status, content = post(server, body, path)
    assert set(content) == {"error"}, content
    error = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "Traceback" not in error["message"]
    assert len(error["message"]) < 700
    return status, error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", sorted({name for name, _ in WRONG_IN_BOTH + WRONG_IN_CHAT}))
def test_a_wrong_chat_is_told_its_field(server, field, stream):
    for name, value in WRONG_IN_BOTH + WRONG_IN_CHAT:
        if name == field:
            body = {
                "model": server.names[0],
                "messages": ASKED,
                "max_tokens": 3,
                "stream": stream,
                name: value,
            }
            status, error = refusal(server, "/v1/chat/completions", body)
            assert status == (404 if value == 5 and name == "model" else 400), (name, value)
            assert name in (error["param"] or error["message"]), (value, error)
            assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("field", sorted({name for name, _ in WRONG_IN_BOTH + WRONG_IN_COMPLETIONS}))
def test_a_wrong_completion_is_told_its_field(server, field):
    for name, value in WRONG_IN_BOTH + WRONG_IN_COMPLETIONS:
        if name == field:
            body = {"model": server.names[1], "prompt": "Who is", "max_tokens": 3, name: value}
            status, error = refusal(server, "/v1/completions", body)
            assert status == (404 if value == 5 and name == "model" else 400), (name, value)
            assert name in (error["param"] or error["message"]), (value, error)


@pytest.mark.parametrize(
    "unusual",
    [
        {"top_k": 400},
        {"top_k": 401},
        {"top_k": 10**9},
        {"top_k": 2**63},
        {"top_k": 2**70},
        {"top_k": -1},
        {"min_p": 1},
        {"min_p": 0.0},
        {"seed": -1},
        {"seed": 2**64 - 1},
        {"seed": 7.0},
        {"temperature": 1e-300, "top_k": 3},
        {"temperature": 2},
        {"logit_bias": {"5": -100, "6": 100}},
        {"logit_bias": {str(token): -100 for token in range(400)}},
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.3},
        {"stop": []},
        {"stop": ""},
        {"stop": ["", "zzz"]},
        {"n": 2.0},
        {"best_of": 1},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "\ud7ff\ufffd\ufdd0\x00<|im_end|>"}]},
        {"messages": [{"role": "assistant", "content": None}]},
        {"logprobs": True, "top_logprobs": 20},
        {"stream_options": None},
    ],
)
def test_unusual_requests_are_answered(server, unusual):
    body = {"model": server.names[0], "messages": ASKED, "max_tokens": 3, "temperature": 1, **unusual}
    status, content = post(server, body)
    assert status == 200, content
    assert content["choices"][0]["finish_reason"] in ("length", "stop")


def test_stream_options_belong_to_a_stream(server):
    body = {"model": server.names[0], "messages": ASKED, "stream_options": {}}
    assert refusal(server, "/v1/chat/completions", body)[0] == 400


def test_an_unknown_model_is_not_loaded_but_refused(client, server):
    for name in ("mlx-community/Some-Model", "/etc", "", server.names[0] + "x"):
        with pytest.raises(openai.NotFoundError) as caught:
            answer(client, name)
        assert caught.value.code == "model_not_found"
        assert server.names[0] in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/none")


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"", b"[" * 100_000, b'{"a": "\\ud83d"}', b"\xff"])
def test_damaged_requests_are_refused(server, body):
    status, _, content = raw(server, "POST", "/v1/chat/completions", body)
    assert status == 400 and "JSON" in json.loads(content)["error"]["message"]


def test_prompts_beyond_the_context_are_refused_before_anything_is_computed(client, server, monkeypatch):
    from unlearn_mlx.inference.chat_model import ChatModel

    monkeypatch.setattr(ChatModel, "logits_at", lambda *_: pytest.fail("it was computed"))
    long = "Harry Potter is a baker. " * 3000
    endless = "x" * 2_000_000
    began = time.monotonic()
    for text in (long, endless):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=server.names[0], messages=[{"role": "user", "content": text}], max_tokens=3
            )
        assert caught.value.code == "context_length_exceeded" and "8192" in str(caught.value)
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=server.names[0], prompt=["short", text], max_tokens=3)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=server.names[0], prompt=[5] * 8192, max_tokens=1)
    many = [{"role": "user", "content": ""}] * 9000
    assert refusal(server, "/v1/chat/completions", {"model": server.names[0], "messages": many})[0] == 400
    assert time.monotonic() - began < 30


def test_a_template_that_refuses_the_messages_is_told_in_words(tiny_folder, tmp_path):
    """As Gemma's and Mistral's do where roles do not alternate; the next one is answered."""
    model = shutil.copytree(tiny_folder, tmp_path / "strict")
    place = model / "tokenizer_config.json"
    configuration = json.loads(place.read_text())
    strict = (
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
    )
    configuration["chat_template"] = strict + configuration["chat_template"]
    place.write_text(json.dumps(configuration))
    with serving([run_with_adapter(tmp_path / "run", model)]) as server:
        for stream in (False, True):
            body = {"model": server.names[1], "messages": [*ASKED, *ASKED], "max_tokens": 2, "stream": stream}
            status, error = refusal(server, "/v1/chat/completions", body)
            assert status == 400 and error["type"] == "invalid_request_error"
            assert "roles must alternate" in error["message"] and error["param"] == "messages"
        assert post(server, {**body, "messages": ASKED, "stream": False})[0] == 200


def test_what_is_not_served_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=server.names[0], input=QUESTIONS[0])
    assert caught.value.code == "not_found"
    for method, path, status in [
        ("GET", "/etc/passwd", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", f"/v1/models/{server.names[0]}", 405),
        ("PROPFIND", "/v1/models", 501),
    ]:
        given, _, content = raw(server, method, path)
        assert given == status, (method, path)
        assert json.loads(content)["error"]["message"]


def test_addresses_are_known_as_clients_write_them(server):
    for path in ("/v1/models", "/v1/models?x=y", "/v1/models/", f"/v1/models/{server.names[0]}/", "/health/"):
        assert raw(server, "GET", path)[0] == 200, path
    status, headers, content = raw(server, "HEAD", "/v1/models")
    assert status == 200 and content == b"" and int(headers["content-length"]) > 10
    status, headers, content = raw(server, "OPTIONS", "/v1/chat/completions")
    assert status == 204 and "POST" in headers["allow"] and content == b""
    body = json.dumps({"model": server.names[0], "messages": ASKED, "max_tokens": 2}).encode()
    for path in ("/v1/chat/completions/", "/chat/completions", "/v1/chat/completions?api-version=1"):
        assert raw(server, "POST", path, body)[0] == 200, path


def test_what_is_no_http_is_refused_in_json(server):
    with socket.create_connection(server.place, timeout=30) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        said = connection.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 400") and b'"error"' in said


def test_a_request_that_is_too_large_is_refused_readably(server):
    status, _, content = raw(server, "POST", "/v1/chat/completions", b"", **{"Content-Length": str(10**9)})
    assert status == 413 and b"bytes" in content
    # A client that sends all of it before it reads can read the answer too, with and without a length.
    body = b'{"model": "' + b"x" * (9 * 2**20) + b'"}'
    assert raw(server, "POST", "/v1/chat/completions", body)[0] == 413
    parts = (body[start : start + 2**16] for start in range(0, len(body), 2**16))
    assert raw(server, "POST", "/v1/chat/completions", parts)[0] == 413
