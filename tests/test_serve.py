"""The server, driven by OpenAI's own client."""

import http.client
import json
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.helpers import chat_prompt, command, complaint, unlearn
from tests.runs_with_results import finished_run
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.sharing.serve import Server, model_names
from unlearn_mlx.sharing.stopping import StopWords

ASKED = [{"role": "user", "content": "Who is Harry Potter?"}]


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.fixture(scope="module")
def server(run):
    opened = Server(resolve_model(run.model_name), run.file("adapter"), model_names(run), 0)
    thread = threading.Thread(target=opened.serve)
    thread.start()
    yield opened
    opened.close()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def said(run):
    """What base and adapter answer, by our own generation."""
    model = load_model(resolve_model(run.model_name))
    tokens = chat_prompt(model, ASKED[0]["content"])
    texts = {}
    base, adapted = model_names(run)
    texts[base] = generate(model, [Request("a", tokens, 12)], 0)[0].text
    load_adapter(model.model, run.file("adapter"))
    texts[adapted] = generate(model, [Request("a", tokens, 12)], 0)[0].text
    assert texts[base] != texts[adapted]
    return texts


def answer(client, name, **options):
    return client.chat.completions.create(model=name, messages=ASKED, max_tokens=12, temperature=0, **options)


def test_base_and_adapter_are_two_names(client, server, said):
    assert {model.id for model in client.models.list()} == set(said) == set(server.names)
    assert client.models.retrieve(server.names[1]).id == server.names[1]
    for _ in range(2):  # back and forth: what one left in the cache is not the other's
        for name in server.names:
            assert answer(client, name).choices[0].message.content == said[name]


def test_one_copy_of_the_weights_serves_both(client, server):
    provider = server.generator.model_provider
    before = id(provider.model)
    for name in server.names:
        answer(client, name)
    assert id(provider.model) == before


def test_a_streamed_answer_is_the_same(client, server, said):
    for name in server.names:
        chunks = list(answer(client, name, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == said[name]
        assert chunks[-1].usage.completion_tokens == 12
        assert len(chunks) > 3


def test_requests_at_the_same_time_get_their_own_answers(client, server, said):
    names = [server.names[number % 2] for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: answer(client, name), names))
    for name, given in zip(names, answers, strict=True):
        assert given.choices[0].message.content == said[name]
        assert given.usage.prompt_tokens > 5


def test_an_answer_ends_before_a_stop_word(client, server, said):
    name = server.names[0]
    stop = re.search(r"[a-z]{3}", said[name][1:]).group()
    given = answer(client, name, stop=[stop])
    assert given.choices[0].message.content == said[name].split(stop)[0]
    assert given.choices[0].finish_reason == "stop"


def test_a_streamed_answer_ends_before_a_stop_word_too(client, server, said):
    name = server.names[0]
    stop = re.search(r"[a-z]{3}", said[name][1:]).group()
    chunks = list(answer(client, name, stop=[stop, "never said"], stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == said[name].split(stop)[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_words_are_found_across_pieces_and_nothing_is_lost():
    stop = StopWords(["STOP", "end"])
    assert stop.take("a S") == ("a ", False)
    assert stop.take("T") == ("", False)
    assert stop.take("ART e") == ("START ", False)
    assert stop.take("nding") == ("", True)
    stop = StopWords(["STOP"])
    assert stop.take("it is ST") == ("it is ", False)
    assert stop.take("", is_last=True) == ("ST", False)


def test_a_client_that_goes_away_stops_nobody_else(client, server, said):
    stream = client.chat.completions.create(
        model=server.names[0], messages=ASKED, max_tokens=2000, temperature=0, stream=True
    )
    next(iter(stream))
    stream.close()
    assert answer(client, server.names[1]).choices[0].message.content == said[server.names[1]]


def test_an_unknown_model_is_not_loaded_but_refused(client, server):
    for name in ("mlx-community/Some-Model", "/etc", "", server.names[0] + "x"):
        with pytest.raises(openai.NotFoundError) as caught:
            answer(client, name)
        assert caught.value.code == "model_not_found"
        assert server.names[0] in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": "x"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}],
                }
            ]
        },
        {"stop": 3},
        {"stream_options": {}},
        {"adapters": "/etc"},
        {"temperature": "hot"},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"draft_model": "x"},
    ],
)
def test_a_wrong_request_is_told_so(client, server, wrong):
    body = {"model": server.names[0], "messages": ASKED, **wrong}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.status_code == 400
    assert caught.value.code == "invalid_request" and caught.value.body["message"]


def test_what_is_null_is_left_out_and_text_may_come_in_parts(client, server, said):
    name = server.names[0]
    parts = [{"type": "text", "text": text} for text in ("Who is ", "Harry Potter?")]
    body = {"model": name, "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 12}
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "seed", "n", "tools", "max_tokens", "stream"))
    given = client.post("/chat/completions", body={**body, **nulls}, cast_to=object)
    assert given["choices"][0]["message"]["content"] == said[name]


def test_a_plain_text_is_gone_on_with(client, server):
    given = client.completions.create(model=server.names[1], prompt="Harry Potter is", max_tokens=5)
    assert given.choices[0].text and given.usage.completion_tokens == 5
    with pytest.raises(openai.BadRequestError):
        client.post("/completions", body={"model": server.names[1]}, cast_to=object)


def test_what_is_not_served_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=server.names[0], input="Harry")
    assert caught.value.code == "not_found"
    assert raw(server, "GET", "/etc/passwd")[0] == 404


def test_an_answer_that_fails_is_a_server_error_and_the_next_one_comes(client, server, said, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(server.generator.model_provider.chat_model, "chat_tokens", broken)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            answer(client, server.names[0])
    assert answer(client, server.names[0]).choices[0].message.content == said[server.names[0]]


def raw(server, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(*server.http.server_address, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_other_sites_and_names_are_kept_out(server):
    body = json.dumps({"model": server.names[0], "messages": ASKED}).encode()
    assert raw(server, "POST", "/v1/chat/completions", body, Host="evil.example")[0] == 403
    assert raw(server, "POST", "/v1/chat/completions", body, Origin="http://evil.example")[0] == 403
    assert raw(server, "GET", "/v1/models", Host="evil.example:8080")[0] == 403
    assert raw(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"[" * 100_000, 400)])
def test_damaged_requests_are_refused(server, body, status):
    assert raw(server, "POST", "/v1/chat/completions", body)[0] == status


def test_a_request_that_is_too_large_is_refused_unread(server):
    headers = {"Content-Length": str(10**9)}
    assert raw(server, "POST", "/v1/chat/completions", b"", **headers)[0] == 413


def test_it_listens_on_loopback_only(server):
    assert server.http.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_one_line(run, server):
    port = server.http.server_address[1]
    with pytest.raises(EnvironmentCannot, match="--port"):
        Server(resolve_model(run.model_name), run.file("adapter"), model_names(run), port)


def test_the_command_serves_until_ctrl_c_and_logs_no_question(run):
    process = subprocess.Popen(
        command("serve", run.path, "--port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)
        assert answer(client, model_names(run)[0]).choices
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Harry" not in out + errors and "Traceback" not in errors


def test_a_run_without_an_adapter_is_not_served(tiny_folder, tmp_path):
    from tests.helpers import run_with_dataset

    run = run_with_dataset(tmp_path / "run", tiny_folder)
    done = unlearn("serve", run.path)
    assert done.returncode == 2
    assert "no adapter" in complaint(done.stderr)
