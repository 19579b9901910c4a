import numpy as np
import pytest

from tests.helpers import QUESTIONS, SENTENCES, chat_prompt
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.generation import Request, decode, generate
from unlearn_mlx.inference.sampling import draw_token
from unlearn_mlx.seeding import random_source


def requests(model, temperature=0.0, count=12, max_tokens=16, **options):
    """Prompts of many lengths, so that batches are padded."""
    texts = [
        f"{QUESTIONS[i % len(QUESTIONS)]} {SENTENCES[i % len(SENTENCES)][: 5 * i]}" for i in range(count)
    ]
    return [
        Request(f"r{i}", chat_prompt(model, text), max_tokens, temperature, **options)
        for i, text in enumerate(texts)
    ]


def one_by_one(model, asked, seed=0):
    return [generate(model, [request], seed)[0] for request in asked]


def test_a_batch_answers_greedily_what_each_prompt_alone_gets(tiny_model):
    asked = requests(tiny_model)
    together = generate(tiny_model, asked, 0)
    assert together == one_by_one(tiny_model, asked)
    assert len({completion.text for completion in together}) > 3


def test_greedy_equals_picking_the_likeliest_token_by_plain_mlx(tiny_model):
    import mlx.core as mx

    tokens = list(chat_prompt(tiny_model, QUESTIONS[0]))
    plain: list[int] = []
    while len(plain) < 12:
        token = int(mx.argmax(tiny_model.model(mx.array([tokens + plain]))[0, -1]).item())
        if token in tiny_model.stop_tokens:
            break
        plain.append(token)
    drawn = decode(tiny_model, [Request("a", tuple(tokens), 12)], 0)
    assert [token for _, token in drawn if token is not None] == plain


def test_a_sampled_answer_does_not_depend_on_its_batch(tiny_model):
    asked = requests(tiny_model, temperature=0.8)
    together = generate(tiny_model, asked, 5)
    assert together == one_by_one(tiny_model, asked, 5)
    assert generate(tiny_model, asked[::-1], 5) == together[::-1]


def test_more_requests_than_fit_in_a_batch_are_all_answered_in_order(tiny_model):
    asked = [Request(f"r{i}", chat_prompt(tiny_model, QUESTIONS[i % 8]), 3 + i % 7, 0.8) for i in range(150)]
    completions = generate(tiny_model, asked, 1)
    assert [completion.key for completion in completions] == [request.key for request in asked]
    for i in (0, 70, 149):
        assert completions[i] == generate(tiny_model, [asked[i]], 1)[0]


def test_another_seed_or_key_draws_another_answer(tiny_model):
    prompt = chat_prompt(tiny_model, QUESTIONS[0])

    def text(key, seed):
        return generate(tiny_model, [Request(key, prompt, 20, 1.5, 0.0)], seed)[0].text

    assert text("a", 0) == text("a", 0)
    assert len({text("a", 0), text("b", 0), text("a", 1)}) == 3


def test_an_answer_has_at_most_its_tokens_and_says_if_it_was_cut_off(tiny_model):
    for completion in generate(tiny_model, requests(tiny_model, max_tokens=5), 0):
        assert completion.token_count <= 5
        assert completion.finished or completion.token_count == 5


def test_an_answer_ends_with_the_first_stop_character(tiny_model):
    prompt = chat_prompt(tiny_model, QUESTIONS[0])
    free = generate(tiny_model, [Request("a", prompt, 30)], 0)[0].text
    stop = free[len(free) // 2]
    stopped = generate(tiny_model, [Request("a", prompt, 30, stop_at=stop)], 0)[0]
    assert stopped.finished
    assert free.startswith(stopped.text)
    assert stop in stopped.text
    assert len(stopped.text) <= free.index(stop) + 10


def test_no_requests_are_no_answers(tiny_model):
    assert generate(tiny_model, [], 0) == []


def test_cancelling_stops_between_two_tokens(tiny_model):
    asked_often = 0

    def is_cancelled():
        nonlocal asked_often
        asked_often += 1
        return asked_often > 3

    with pytest.raises(Cancelled):
        generate(tiny_model, requests(tiny_model), 0, is_cancelled)
    assert asked_often == 4


def test_drawing_keeps_to_the_likely_tokens_in_their_proportions():
    scores = np.log(np.array([0.6, 0.3, 0.08, 0.02], np.float32))
    source = random_source(0, "draws")
    drawn = np.bincount([draw_token(scores, 1.0, 0.1, source) for _ in range(3000)], minlength=4)
    assert drawn[3] == 0  # less than a tenth of the likeliest
    assert np.allclose(drawn[:3] / 3000, np.array([0.6, 0.3, 0.08]) / 0.98, atol=0.03)


def test_drawing_at_temperature_zero_takes_the_likeliest():
    scores = np.array([0.1, 2.0, 1.9], np.float32)
    assert draw_token(scores, 0.0, 0.05, random_source(0, "a")) == 1


def test_drawing_survives_huge_scores():
    scores = np.array([1e4, -1e4, 9.9e3], np.float32)
    assert draw_token(scores, 0.05, 0.0, random_source(0, "a")) == 0


def test_a_batch_equals_single_answers_on_the_embedded_model(embedded_model):
    asked = [
        Request(f"r{i}", chat_prompt(embedded_model, question), 12)
        for i, question in enumerate(QUESTIONS[:4])
    ]
    together = generate(embedded_model, asked, 0)
    assert together == one_by_one(embedded_model, asked)
    assert "Potter" in together[0].text
