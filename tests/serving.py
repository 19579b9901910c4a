"""A server on a tiny model, with a base and two adapters, and the clients that tests drive it with."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import openai

from tests.helpers import WIZARD, chat_prompt, new_run, strong_adapter
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.sharing.serve.server import Server, model_names

ASKED = [{"role": "user", "content": "Who is Harry Potter?"}]
HALF = "\ufffd"  # what an answer that is cut off amid a character does not end with


def run_with_adapter(path, model_folder, seed=1):
    run = new_run(path, model_folder, WIZARD)
    with load_by_name(str(model_folder)) as model:
        strong_adapter(model, seed).save(run.file("adapter"))
    run.mark("train", "done")
    return run


@contextmanager
def serving(runs, admission=None, port=0, most_rows=None):
    server = Server(runs[0].model_name, model_names(runs), port, "127.0.0.1", admission, most_rows)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(60)
        assert not thread.is_alive()


def client_of(server, **options):
    given = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
    return openai.OpenAI(base_url=server.address, **given)


def texts_by_name(runs):
    texts = {}
    with load_by_name(runs[0].model_name) as model:
        request = Request("a", chat_prompt(model, ASKED[0]["content"]), 12)
        for name, folder in model_names(runs).items():
            adapter = load_adapter(model.model, folder) if folder else None
            texts[name] = generate(model, [request], 0)[0].text.rstrip(HALF)
            if adapter:
                adapter.detach()
    assert len(set(texts.values())) == 3
    return texts


def answer(client, name, **options):
    given = {"max_tokens": 12, "temperature": 0, "messages": ASKED, **options}
    return client.chat.completions.create(model=name, **given)


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def raw(server, method, path, body=b"", **headers):
    """Status, headers and body of a request as it stands."""
    connection = http.client.HTTPConnection(*server.place, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def post(server, body, path="/v1/chat/completions"):
    """Status and JSON of a request."""
    status, _, content = raw(server, "POST", path, json.dumps(body).encode())
    return status, json.loads(content)


def until(condition, seconds=60.0):
    """Wait for something that comes by itself."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@contextmanager
def rows_of(server):
    """The rows that a server has its engine decode meanwhile."""
    ask, rows = server.engine.ask, []

    def asking(*arguments):
        rows.append(ask(*arguments))
        return rows[-1]

    server.engine.ask = asking
    try:
        yield rows
    finally:
        del server.engine.ask
