"""Log-probabilities in OpenAI's shape: the right tokens, the model's own values, of answers and prompts."""

import numpy as np
import pytest

from tests.helpers import SENTENCES
from tests.serving import answer, post

TEXT = SENTENCES[1]


@pytest.fixture
def scores(tiny_model):
    """The base's log-probabilities of a text's tokens, but the first."""
    tokens = tiny_model.text_tokens(TEXT)
    return tiny_model.log_probabilities([tokens[:1]], [[tokens[1:]]])[0][0]


def test_a_chat_names_each_token_with_its_bytes_and_the_likeliest(client, server, said):
    name = server.names[1]
    given = answer(client, name, logprobs=True, top_logprobs=3).choices[0]
    content = given.logprobs.content
    assert len(content) == 12
    whole = b"".join(bytes(token.bytes) for token in content)
    assert whole.decode(errors="replace") == said[name] == given.message.content
    for token in content:
        assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert bytes(token.bytes).decode(errors="ignore") in (token.token, "")
    streamed = []
    for chunk in answer(client, name, logprobs=True, top_logprobs=3, stream=True):
        streamed += (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or []
    # What the prompt cache has is not computed again: a last digit may differ.
    plain = answer(client, name, logprobs=True).choices[0].logprobs.content
    for others in (streamed, plain):
        assert [token.token for token in others] == [token.token for token in content]
        values = [token.logprob for token in content]
        np.testing.assert_allclose([token.logprob for token in others], values, atol=2e-4)
    assert answer(client, name).choices[0].logprobs is None


def test_tokens_behind_a_stop_word_are_not_told(client, server, said):
    name = server.names[1]
    stop = said[name][6:9]
    given = answer(client, name, logprobs=True, stop=stop).choices[0]
    assert given.message.content == said[name].split(stop)[0]
    told = b"".join(bytes(token.bytes) for token in given.logprobs.content).decode(errors="replace")
    assert told.startswith(given.message.content) and len(told) < len(given.message.content) + 12


@pytest.mark.parametrize("form", ["text", "list", "tokens", "lists of tokens"])
def test_a_prompt_is_echoed_and_scored_without_an_answer(client, server, tiny_model, scores, form):
    tokens = tiny_model.text_tokens(TEXT)
    prompt = {"text": TEXT, "list": [TEXT, TEXT], "tokens": tokens, "lists of tokens": [tokens, tokens]}[form]
    options = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    given = client.completions.create(model=server.names[0], prompt=prompt, **options)
    assert len(given.choices) == (2 if form.startswith("list") else 1)
    for choice in given.choices:
        assert choice.text == TEXT and choice.finish_reason == "length"
        told = choice.logprobs
        assert "".join(told.tokens) == TEXT
        for offset, token in zip(told.text_offset, told.tokens, strict=True):
            assert TEXT[offset:].startswith(token)
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        np.testing.assert_allclose(told.token_logprobs[1:], scores, atol=2e-4)
        ranked = zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
        for token, value, likeliest in list(ranked)[1:]:
            assert likeliest[token] == value <= max(likeliest.values())
            assert len(likeliest) <= 2
    assert given.usage.completion_tokens == 0


def test_base_and_adapter_score_a_text_each_its_own_way(client, server, tiny_model, scores):
    options = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "prompt": TEXT}
    base, first, second = (
        client.completions.create(model=name, **options).choices[0].logprobs for name in server.names
    )
    np.testing.assert_allclose(base.token_logprobs[1:-1], scores, atol=2e-4)
    assert first.tokens[:-1] == second.tokens[:-1] == base.tokens[:-1]
    assert abs(np.array(first.token_logprobs[1:]) - np.array(base.token_logprobs[1:])).max() > 0.1
    assert abs(np.array(first.token_logprobs[1:]) - np.array(second.token_logprobs[1:])).max() > 0.1


def test_an_echo_is_streamed_before_its_answer(client, server):
    options = {"model": server.names[0], "prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": 6}
    whole = client.completions.create(**options).choices[0]
    text, tokens, values, offsets = "", [], [], []
    for chunk in client.completions.create(stream=True, **options):
        text += chunk.choices[0].text
        if told := chunk.choices[0].logprobs:
            tokens += told.tokens
            values += told.token_logprobs
            offsets += told.text_offset
    assert text == whole.text and text.startswith(TEXT)
    assert (tokens, offsets) == (whole.logprobs.tokens, whole.logprobs.text_offset)
    assert values == whole.logprobs.token_logprobs


def test_a_long_prompt_is_scored_in_parts_as_it_is_whole(client, server, tiny_model):
    text = " ".join(SENTENCES * 6)
    tokens = tiny_model.text_tokens(text)
    assert len(tokens) > 600
    wanted = tiny_model.log_probabilities([tokens[:1]], [[tokens[1:]]])[0][0]
    options = {"max_tokens": 0, "echo": True, "logprobs": 0}
    told = client.completions.create(model=server.names[0], prompt=text, **options).choices[0].logprobs
    np.testing.assert_allclose(told.token_logprobs[1:], wanted, atol=2e-4)
    # What is kept of it in the prompt cache shows in no score.
    again = client.completions.create(model=server.names[0], prompt=text, **options).choices[0].logprobs
    assert again.token_logprobs == told.token_logprobs


def test_a_part_of_a_character_is_named_by_its_bytes(client, server, tiny_model):
    tokens = tiny_model.text_tokens("é")
    assert len(tokens) == 2
    options = {"max_tokens": 0, "echo": True, "logprobs": 0}
    given = client.completions.create(model=server.names[0], prompt=tokens, **options).choices[0]
    assert given.text == "é"
    assert given.logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]
    assert given.logprobs.text_offset == [0, 0]


def test_a_text_that_goes_on_keeps_its_blank(client, server, tiny_model):
    blank = next(token for token in range(300, 400) if tiny_model.bytes_of(token).startswith(b" "))
    options = {"max_tokens": 2, "logit_bias": {str(blank): 100}, "logprobs": 0}
    for prompt in (TEXT, tiny_model.text_tokens(TEXT), TEXT + " "):
        given = client.completions.create(model=server.names[0], prompt=prompt, **options).choices[0]
        assert given.text == 2 * tiny_model.bytes_of(blank).decode() == "".join(given.logprobs.tokens)


def test_the_mark_of_the_beginning_stands_once(served_llama3):
    """Llama 3's tokenizer puts one in front of a text; a client that writes it does not mean two."""
    server, model = served_llama3
    words = "Who is Harry Potter?"
    plain = {"model": server.names[0], "prompt": words, "max_tokens": 0, "echo": True, "logprobs": 0}
    status, content = post(server, plain, "/v1/completions")
    assert status == 200, content
    beginning = model.special_tokens.beginning
    tokens = [*beginning, *model.text_tokens(words)]
    assert len(beginning) == 1 and content["usage"]["prompt_tokens"] == len(tokens)
    told = content["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == words == content["choices"][0]["text"]
    wanted = model.log_probabilities([tokens[:1]], [[tokens[1:]]])[0][0]
    np.testing.assert_allclose(told["token_logprobs"], wanted, atol=2e-3)
    for prompt in ("<|begin_of_text|>" + words, tokens):
        status, content = post(server, {**plain, "prompt": prompt}, "/v1/completions")
        assert content["usage"]["prompt_tokens"] == len(tokens)
        assert content["choices"][0]["text"] == "<|begin_of_text|>" + words
        np.testing.assert_allclose(content["choices"][0]["logprobs"]["token_logprobs"][1:], wanted, atol=2e-3)


@pytest.fixture
def served_llama3(llama3_folder, llama3_model, tmp_path):
    from tests.serving import run_with_adapter, serving

    with serving([run_with_adapter(tmp_path / "run", llama3_folder)]) as server:
        yield server, llama3_model
