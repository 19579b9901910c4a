"""What no request, client or error may do: end the server, harm another's answer, or hold what it left."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.server_fuzz import Fuzz, is_flat
from tests.serving import ASKED, answer, client_of, post, raw, rows_of, serving, text_of, until
from tests.test_decoder import breaks
from unlearn_mlx.inference.decoder import Decoder
from unlearn_mlx.sharing.serve import application, asking

LONG = 4000  # tokens, which take the tiny model seconds


def sent(server, body):
    """A connection on which a request was sent, and nothing read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(server.place, timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row_within_a_second(client, server, said, stream):
    body = {"model": server.names[1], "messages": ASKED, "max_tokens": LONG, "stream": stream, "n": 2}
    with rows_of(server) as rows:
        connections = [sent(server, body) for _ in range(5)]
        until(lambda: len(rows) == 10 and all(row.drawn for row in rows))
        for connection in connections:
            connection.close()
        began = time.monotonic()
        until(lambda: all(row.has_ended for row in rows))
    assert time.monotonic() - began < 1.0
    assert all(len(row.drawn) < LONG for row in rows)
    assert answer(client, server.names[0]).choices[0].message.content == said[server.names[0]]


def test_a_client_that_goes_away_while_it_waits_frees_its_place(served_runs):
    with serving(served_runs[:1], most_rows=1) as server, rows_of(server) as rows:
        first = sent(server, {"model": server.names[0], "messages": ASKED, "max_tokens": LONG})
        until(lambda: rows and rows[0].drawn)
        second = sent(server, {"model": server.names[0], "messages": ASKED, "max_tokens": LONG})
        until(lambda: server.engine.waiting == 1)
        second.close()
        until(lambda: server.engine.waiting == 0, 5.0)
        assert not rows[0].has_ended
        first.close()


def test_a_queue_that_is_full_says_when_to_come_again(served_runs, monkeypatch):
    monkeypatch.setattr(asking, "MOST_WAITING", 3)
    monkeypatch.setattr("unlearn_mlx.inference.decoder.LONG_STAY", 10**6)  # nobody makes room meanwhile
    with serving(served_runs[:1], most_rows=1) as server, rows_of(server) as rows:
        body = {"model": server.names[0], "messages": ASKED, "max_tokens": LONG}
        connections = [sent(server, body)]
        until(lambda: rows and rows[0].drawn)
        connections += [sent(server, body) for _ in range(3)]
        until(lambda: len(rows) == 4 and server.engine.waiting == 3)
        status, headers, content = raw(
            server, "POST", "/v1/chat/completions", json.dumps({**body, "max_tokens": 2}).encode()
        )
        assert status == 429 and int(headers["retry-after"]) > 0
        assert json.loads(content)["error"]["code"] == "queue_full"
        for connection in connections:
            connection.close()
        until(lambda: all(row.has_ended for row in rows))
        assert post(server, {**body, "max_tokens": 2})[0] == 200


def test_clients_take_turns_where_there_is_no_room_for_all(served_runs, said):
    """Five long answers of clients that stay keep nobody waiting for their ends."""
    with serving(served_runs[:1], most_rows=2) as server, rows_of(server) as rows:
        body = {"model": server.names[1], "messages": ASKED, "max_tokens": LONG}
        connections = [sent(server, body) for _ in range(5)]
        until(lambda: len(rows) == 5 and rows[0].drawn)
        given = answer(client_of(server), server.names[0])
        assert given.choices[0].message.content == said[server.names[0]]
        assert not any(row.has_ended for row in rows[:5])
        for connection in connections:
            connection.close()


def test_a_client_that_does_not_read_is_cut(served_runs, said, monkeypatch):
    monkeypatch.setattr(application, "SLOWEST_READER", 0.3)
    with serving(served_runs[:1]) as server, rows_of(server) as rows:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.place)
        options = {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 4, "max_tokens": LONG}
        data = json.dumps({"model": server.names[0], "messages": ASKED, **options}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        until(lambda: rows and all(row.has_ended for row in rows), 60)
        assert any(len(row.drawn) < LONG for row in rows)
        given = answer(client_of(server), server.names[0])
        assert given.choices[0].message.content == said[server.names[0]]
        connection.close()


def test_a_request_that_never_gets_whole_is_given_up(served_runs, monkeypatch):
    monkeypatch.setattr(application, "SLOWEST_WRITER", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
    with serving(served_runs[:1]) as server, socket.create_connection(server.place, timeout=30) as connection:
        connection.sendall(head + b"{")
        assert b" 408 " in connection.recv(4096)


@pytest.mark.parametrize(
    "step",
    [
        "inference.engine:Engine._begin",
        "inference.row_adapters:RowAdapters.use",
        "inference.chat_model:ChatModel.chat_tokens",
        "inference.chat_model:ChatModel.logits_at",
        "inference.decoder:Decoder._fill",
        "inference.decoder:Decoder._join",
        "inference.decoder:Decoder._step",
        "inference.decoder:Decoder._leave",
        "inference.decoder:Decoder.advance",
        "inference.decoder:Decoder.start",
        "inference.line:Line.take",
        "inference.line:Line.take_gone",
        "inference.rows:Row.draw",
        "inference.answer_text:AnswerText.take",
        "sharing.serve.responses:Form.take",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_at_any_step_is_told_and_the_next_request_is_answered(server, said, step, stream):
    """Inside a row it ends that row; outside of any, the engine is started again."""
    client = client_of(server)

    def asked(number):
        name, options = server.names[number % 3], {"max_tokens": 6 + 2 * number, "stream": stream}
        try:
            given = answer(client, name, **options)
            return text_of(given) if stream else given.choices[0].message.content
        except openai.APIError as error:
            return error

    with pytest.MonkeyPatch.context() as patch:
        calls = breaks(patch, step, range(1, 2))
        with ThreadPoolExecutor(4) as pool:
            given = list(pool.map(asked, range(4)))
        until(lambda: len(calls) > 1)
    for number, text in enumerate(given):
        if isinstance(text, Exception):
            assert "it broke" in str(text) or "ask again" in str(text)
        else:
            assert text and said[server.names[number % 3]].startswith(text)
    until(lambda: raw(server, "GET", "/health")[0] == 200)
    for name in server.names:
        assert answer(client, name).choices[0].message.content == said[name]


def test_an_engine_that_dies_is_started_again_and_health_says_so(served_runs, said, monkeypatch):
    from unlearn_mlx.inference import loading

    may_load, load = threading.Event(), loading.load_model

    def waits(source):
        assert may_load.wait(60)
        return load(source)

    with serving(served_runs[:1]) as server:
        name = server.names[1]
        advance = Decoder.advance

        def dies(decoder):
            if any(row.drawn for row in decoder.rows):
                raise SystemExit("the GPU is gone")
            advance(decoder)

        monkeypatch.setattr(loading, "load_model", waits)
        monkeypatch.setattr(Decoder, "advance", dies)
        assert raw(server, "GET", "/health")[0] == 200
        status, content = post(server, {"model": name, "messages": ASKED, "max_tokens": 12})
        assert status == 503 and "ask again" in content["error"]["message"]
        monkeypatch.setattr(Decoder, "advance", advance)
        status, headers, content = raw(server, "GET", "/health")
        assert status == 503 and json.loads(content) == {"status": "restarting"} and headers["retry-after"]
        with ThreadPoolExecutor(1) as pool:  # who asks meanwhile waits, and is answered
            waiting = pool.submit(answer, client_of(server), name)
            may_load.set()
            assert waiting.result().choices[0].message.content == said[name]
        assert raw(server, "GET", "/health")[0] == 200


def test_an_error_amid_a_stream_is_an_event_and_ends_it(client, server, said, monkeypatch):
    from unlearn_mlx.inference.rows import Row

    draw = Row.draw

    def fails(row, *rest):
        if len(row.drawn) >= 5:
            raise RuntimeError("it broke")
        draw(row, *rest)

    monkeypatch.setattr(Row, "draw", fails)
    body = {"model": server.names[0], "messages": ASKED, "max_tokens": 12, "stream": True}
    _, _, content = raw(server, "POST", "/v1/chat/completions", json.dumps(body).encode())
    events = content.decode().strip().split("\n\n")
    assert "it broke" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    assert events[-1] == "data: [DONE]" and len(events) > 4
    with pytest.raises(openai.APIError, match="it broke"):
        list(answer(client, server.names[0], stream=True))
    monkeypatch.undo()
    assert answer(client, server.names[0]).choices[0].message.content == said[server.names[0]]


def test_random_requests_are_answered_or_refused_and_good_clients_hear_nothing_of_them(server, said):
    fuzz = Fuzz(server.place, list(server.names), {name: said[name] for name in server.names}, seed=7)
    fuzz.run(160)
    assert not fuzz.faults, "\n".join(fuzz.faults[:5])
    assert fuzz.answered > 10 and fuzz.refused > 10 and fuzz.good > 5


@pytest.mark.parametrize(("late", "flat"), [(100, True), (108, True), (112, False)])
def test_a_server_that_grows_is_told_from_one_that_warms_up(late, flat):
    assert is_flat([60, 80, *[100] * 4, late, late]) == flat
