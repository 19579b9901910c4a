"""The server, driven by OpenAI's own client: names, streams, choices, and many at once."""

import http.client
import json
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest

from tests.helpers import command, complaint, run_with_dataset, unlearn
from tests.serving import (
    ASKED,
    HALF,
    answer,
    client_of,
    post,
    raw,
    rows_of,
    run_with_adapter,
    serving,
    text_of,
    until,
)
from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.inference.answer_text import AnswerText, StopWords
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.row_adapters import RowAdapters
from unlearn_mlx.sharing.serve.gate import Admission
from unlearn_mlx.sharing.serve.server import model_names


def test_base_and_adapters_are_names_over_one_copy(client, server, said):
    assert [model.id for model in client.models.list()] == list(said) == list(server.names)
    assert list(said) == ["tiny", "tiny-without-harry-potter", "tiny-without-harry-potter-2"]
    assert client.models.retrieve(server.names[1]).id == server.names[1]
    for _ in range(2):  # back and forth: what one left in the cache is not the other's
        for name in server.names:
            assert answer(client, name).choices[0].message.content == said[name]


def test_a_streamed_answer_is_the_same(client, server, said):
    for name in server.names:
        chunks = list(answer(client, name, stream=True, stream_options={"include_usage": True}))
        assert text_of(chunks) == said[name]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices
        assert chunks[-2].choices[0].finish_reason == "length"
        assert len(chunks) > 4


def test_requests_at_the_same_time_get_their_own_answers(client, server, said):
    names = [server.names[number % 3] for number in range(9)]
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda name: answer(client, name), names))
    for name, given in zip(names, answers, strict=True):
        assert given.choices[0].message.content == said[name]
        assert given.usage.prompt_tokens > 5
        assert given.usage.total_tokens == given.usage.prompt_tokens + 12


def test_base_and_adapters_decode_in_one_batch(client, server, said, monkeypatch):
    """A short question to one name is answered while another name's long answer is under way."""
    batches, use = [], RowAdapters.use

    def noting(adapters, rows):
        batches.append({weights.adapter for weights in rows})
        use(adapters, rows)

    monkeypatch.setattr(RowAdapters, "use", noting)
    with rows_of(server) as rows:
        long = answer(client, server.names[1], max_tokens=4000, stream=True)
        next(iter(long))
        with ThreadPoolExecutor(2) as pool:
            others = list(pool.map(lambda name: answer(client, name), server.names[::2]))
        assert [given.choices[0].message.content for given in others] == [said[n] for n in server.names[::2]]
        assert not rows[0].has_ended
        assert max(map(len, batches)) > 1
        long.close()
        until(lambda: rows[0].has_ended)


def test_a_seed_says_the_same_whoever_shares_the_batch(client, server):
    def drawn(seed, name=server.names[0]):
        options = {"temperature": 1.0, "top_p": 0.95, "seed": seed, "max_tokens": 16}
        return answer(client, name, **options).choices[0].message.content

    seeds = [0, -1, -(2**63), 2**63, 2**64 - 1]
    alone = [drawn(seed) for seed in seeds]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(drawn, seed, server.names[1]) for seed in range(3)]
        assert list(pool.map(drawn, seeds)) == alone
        assert all(other.result() for other in others)
    unseeded = {answer(client, server.names[0], temperature=1.5).choices[0].message.content for _ in range(4)}
    assert len(unseeded) > 1


def test_several_choices_are_several_draws(client, server, said):
    given = answer(client, server.names[0], n=3, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in given.choices]
    assert [choice.index for choice in given.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert 12 < given.usage.completion_tokens <= 36
    streamed = ["", "", ""]
    for chunk in answer(client, server.names[0], n=3, temperature=1.0, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    greedy = answer(client, server.names[0], n=2)
    assert [choice.message.content for choice in greedy.choices] == [said[server.names[0]]] * 2


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"temperature": 1.5, "top_p": 0}, {"top_k": 1}])
def test_no_temperature_or_no_share_is_greedy(client, server, said, greedy):
    body = {"model": server.names[0], "messages": ASKED, "max_tokens": 12.0, "temperature": 1, **greedy}
    given = client.post("/chat/completions", body=body, cast_to=object)
    assert given["choices"][0]["message"]["content"] == said[server.names[0]]


def test_an_answer_ends_before_a_stop_word_whole_and_streamed(client, server, said):
    name = server.names[0]
    stop = re.search(r"[a-z]{3}", said[name][1:]).group()
    for words in (stop, [stop, "never said"]):
        given = answer(client, name, stop=words)
        assert given.choices[0].message.content == said[name].split(stop)[0]
        assert given.choices[0].finish_reason == "stop"
        chunks = list(answer(client, name, stop=words, stream=True))
        assert text_of(chunks) == said[name].split(stop)[0]
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


def test_text_comes_in_whole_characters_whatever_its_length(tiny_model):
    tokens = tiny_model.text_tokens("a é € 👍 end")
    for length in range(1, len(tokens) + 1):
        text = AnswerText(tiny_model.decoded)
        pieces = [text.take(token)[0] for token in tokens[:length]]
        assert HALF not in "".join(pieces)
        assert "".join(pieces) + text.finish() == tiny_model.text_of(tokens[:length])


def test_a_cut_answer_ends_with_a_whole_character(client, server):
    for length in range(1, 13):
        assert (
            not answer(client, server.names[0], max_tokens=length).choices[0].message.content.endswith(HALF)
        )


def test_what_is_null_or_unknown_is_left_out_and_text_may_come_in_parts(client, server, said):
    name = server.names[0]
    parts = [{"type": "text", "text": text} for text in ("Who is ", "Harry Potter?")]
    body = {"model": name, "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 12}
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "seed", "n", "tools", "max_tokens", "stream"))
    unknown = {"user": "me", "metadata": {"a": [1]}, "store": True, "tools": [], "tool_choice": "none"}
    given = client.post("/chat/completions", body={**body, **nulls, **unknown}, cast_to=object)
    assert given["choices"][0]["message"]["content"] == said[name]


def test_roles_are_told_as_clients_send_them(client, server):
    name = server.names[0]

    def told(*messages):
        given = client.post(
            "/chat/completions", body={"model": name, "messages": messages, "max_tokens": 12}, cast_to=object
        )
        return given["choices"][0]["message"]["content"], given["usage"]["prompt_tokens"]

    asked = {"role": "user", "content": "Who?", "name": "somebody"}
    brief = "Be brief."
    assert told({"role": "developer", "content": brief}, asked) == told(
        {"role": "system", "content": brief}, asked
    )
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]}
    assert told(asked, called, result, asked)[1] > told(asked, {"role": "assistant"}, asked)[1]


def test_an_answer_that_is_gone_on_with_word_for_word_is_no_end(client, server):
    """The prompt and the text that came back: the exact continuation that ended mlx-lm's server."""

    def gone_on_with(name, prompt):
        given = client.completions.create(model=name, prompt=prompt, max_tokens=8, temperature=0)
        assert given.choices[0].finish_reason
        return given.choices[0].text

    prompt = "Harry Potter is"
    for name in server.names:
        first = gone_on_with(name, prompt)
        for text in (prompt, prompt + first):
            assert gone_on_with(name, text) == gone_on_with(name, text)
        assert gone_on_with(name, prompt) == first


def test_other_sites_and_names_are_kept_out_and_told_the_way_in(served_runs, server):
    for name in ("evil.example", "evil.example:8080"):
        status, _, content = raw(server, "GET", "/v1/models", Host=name)
        assert status == 403 and b"--allow-host evil.example" in content
    status, headers, content = raw(
        server, "POST", "/v1/chat/completions", b"{}", Origin="http://evil.example"
    )
    assert status == 403 and b"--allow-origin http://evil.example" in content
    assert "Access-Control-Allow-Origin" not in headers
    assert raw(server, "GET", "/health")[0] == 200


def test_named_hosts_and_origins_are_let_in_with_the_key(served_runs, said):
    admission = Admission(("host.docker.internal",), ("app://obsidian.md",), "secret")
    with serving(served_runs[:1], admission) as server:
        key = {"Authorization": "Bearer secret"}
        assert raw(server, "GET", "/v1/models")[0] == 401
        assert raw(server, "GET", "/v1/models", Authorization="Bearer wrong")[0] == 401
        assert raw(server, "GET", "/health")[0] == 200
        assert raw(server, "GET", "/v1/models", Host="host.docker.internal:8080", **key)[0] == 200
        status, headers, _ = raw(server, "GET", "/v1/models", Origin="app://obsidian.md", **key)
        assert status == 200 and headers["access-control-allow-origin"] == "app://obsidian.md"
        asked = {"Access-Control-Request-Method": "POST", "Origin": "app://obsidian.md"}
        status, headers, _ = raw(server, "OPTIONS", "/v1/chat/completions", **asked)
        assert status == 204 and "POST" in headers["access-control-allow-methods"]
        with pytest.raises(openai.AuthenticationError):
            answer(client_of(server), server.names[0])
        given = answer(client_of(server, api_key="secret"), server.names[0])
        assert given.choices[0].message.content == said[server.names[0]]


def test_it_listens_on_loopback_only(server):
    assert server.place[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_one_line(served_runs, server):
    with pytest.raises(EnvironmentCannot, match="--port"), serving(served_runs[:1], port=server.place[1]):
        pass


def test_runs_of_two_models_are_not_served_together(served_runs, untied_folder, tmp_path):
    other = run_with_adapter(tmp_path / "run", untied_folder)
    with pytest.raises(UserError, match="one model"):
        model_names([served_runs[0], other])


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_answers_what_is_under_way_and_ends_and_logs_no_question(served_runs, ending):
    process = subprocess.Popen(
        command("serve", *(run.path for run in served_runs), "--port", "0"),
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
        names = list(model_names(served_runs))
        assert [model.id for model in client.models.list()] == names
        stream = answer(client, names[2], max_tokens=300, stream=True)
        chunks = [next(stream)]
        process.send_signal(ending)
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        client.close()
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Harry" not in (out + errors).replace("-without-harry", "") and "Traceback" not in errors


def test_a_run_without_an_adapter_is_not_served(tiny_folder, tmp_path):
    run = run_with_dataset(tmp_path / "run", tiny_folder)
    done = unlearn("serve", run.path)
    assert done.returncode == 2
    assert "no adapter" in complaint(done.stderr)


def test_what_fails_before_the_first_token_is_a_status_and_the_next_one_is_answered(client, server, said):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatModel, "chat_tokens", lambda *_: 1 / 0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="division"):
                answer(client, server.names[0], stream=stream)
    assert answer(client, server.names[0]).choices[0].message.content == said[server.names[0]]


def test_a_connection_is_kept_after_a_failure(server, monkeypatch):
    """Clients ask the next thing on it: one that was closed unsaid would be a reset."""
    connection = http.client.HTTPConnection(*server.place, timeout=60)
    body = json.dumps({"model": server.names[0], "messages": ASKED, "max_tokens": 2})
    statuses, sockets = [], set()
    with monkeypatch.context() as patch, closing(connection):
        patch.setattr(ChatModel, "chat_tokens", lambda *_: 1 / 0)
        for path in ("/v1/chat/completions", "/v1/models", "/v1/chat/completions", "/nowhere", "/health"):
            connection.request("POST" if "chat" in path else "GET", path, body if "chat" in path else None)
            response = connection.getresponse()
            statuses.append(response.status)
            assert response.read()
            sockets.add(connection.sock)
    assert statuses == [500, 200, 500, 404, 200] and len(sockets) == 1


def test_threads_are_not_left_behind(served_runs):
    before = threading.active_count()
    with serving(served_runs[:1]) as server:
        assert post(server, {"model": server.names[0], "messages": ASKED, "max_tokens": 2})[0] == 200
    until(lambda: threading.active_count() <= before)
