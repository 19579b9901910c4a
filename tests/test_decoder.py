"""Rows that are decoded together: each says what it says alone, whoever comes, goes or fails meanwhile."""

import pkgutil

import numpy as np
import pytest

from tests.helpers import QUESTIONS, chat_prompt, strong_adapter
from unlearn_mlx.errors import Cancelled, UserError
from unlearn_mlx.inference.decoder import FILL_TOKENS, LONG_STAY, Decoder
from unlearn_mlx.inference.generation import Request, generate
from unlearn_mlx.inference.rows import Row, RowRequest
from unlearn_mlx.inference.sampling import Sampling

ROOM = 10**9  # bytes


@pytest.fixture
def adapters(tiny_model, tmp_path):
    for seed in (1, 2):
        adapter = strong_adapter(tiny_model, seed)
        adapter.save(tmp_path / str(seed))
        adapter.detach()
    return [tmp_path / "1", tmp_path / "2"]


class Heard:
    """What a row said."""

    def __init__(self, request, asker=""):
        self.pieces, self.error = [], None
        self.row = Row(request, self.take, asker)

    def take(self, news):
        if isinstance(news, BaseException):
            self.error = news
        else:
            self.pieces.append(news)

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self):
        return self.pieces[-1].finish if self.pieces else ""


def asked(model, number=0, length=12, **options):
    return RowRequest(chat_prompt(model, QUESTIONS[number]), length, **options)


def all_of(decoder, *requests, step_by_step=False):
    heard = [Heard(request) for request in requests]
    for each in heard:
        decoder.start(each.row)
        if step_by_step:
            decoder.advance()
    finish(decoder)
    return heard


def finish(decoder):
    steps = 0
    while decoder.count:
        decoder.advance()
        steps += 1
        assert steps < 5000


def alone(model, request):
    (heard,) = all_of(Decoder(model, ROOM), request)
    assert heard.error is None
    return heard.text


def test_greedy_is_what_the_pipeline_generates(tiny_model):
    wanted = generate(tiny_model, [Request("a", chat_prompt(tiny_model, QUESTIONS[0]), 12)], 0)[0].text
    assert alone(tiny_model, asked(tiny_model)) == wanted


def test_rows_of_base_and_adapters_join_and_leave_each_at_its_time(tiny_model, adapters):
    requests = [
        asked(
            tiny_model, number % 5, 6 + 5 * number, adapter=[None, *adapters][number % 3], strength=strength
        )
        for number, strength in enumerate([1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 1.0])
    ]
    wanted = [alone(tiny_model, request) for request in requests]
    assert len(set(wanted)) == len(wanted)
    heard = all_of(Decoder(tiny_model, ROOM), *requests, step_by_step=True)
    assert [each.text for each in heard] == wanted


def test_a_sampled_row_says_the_same_whoever_shares_the_batch(tiny_model, adapters):
    sampling = Sampling(1.0, top_p=0.9, top_k=50, presence_penalty=0.5, bias=((40, 2.0),))
    requests = [asked(tiny_model, 0, 20, sampling=sampling, seed=seed) for seed in range(6)]
    wanted = [alone(tiny_model, request) for request in requests]
    assert len(set(wanted)) > 3
    others = [asked(tiny_model, 1, 9, adapter=adapters[0]), asked(tiny_model, 2, 30)]
    heard = all_of(Decoder(tiny_model, ROOM), *others, *requests)
    assert [each.text for each in heard[2:]] == wanted


def test_the_next_turn_computes_its_new_tokens_alone_and_says_the_same(tiny_model, adapters, computed):
    decoder = Decoder(tiny_model, ROOM)
    new = prompt = chat_prompt(tiny_model, QUESTIONS[0])
    for number in range(3):
        request = RowRequest(prompt, 8, adapter=adapters[0])
        wanted = alone(tiny_model, request)
        computed.clear()
        (heard,) = all_of(decoder, request)
        assert heard.text == wanted
        rows, tokens = computed[0]
        assert rows * tokens <= len(new) + 2
        new = chat_prompt(tiny_model, QUESTIONS[number + 1])
        prompt = (*prompt, *heard.row.drawn, *new)


def test_a_long_prompt_is_told_in_parts(tiny_model, monkeypatch):
    monkeypatch.setattr("unlearn_mlx.inference.decoder.FILL_TOKENS", 32)
    request, told = asked(tiny_model, 0, 10), []
    heard = Heard(request)
    heard.row.on_prompt = lambda done, total: told.append((done, total))
    decoder = Decoder(tiny_model, ROOM)
    decoder.start(heard.row)
    finish(decoder)
    total = len(request.tokens)
    assert told == [(32 * number, total) for number in range(1, (total - 1) // 32 + 1)] and told
    monkeypatch.undo()
    assert heard.text == alone(tiny_model, request)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_gpu_draws_ahead_is_what_the_host_draws(tiny_model, adapters, monkeypatch, temperature):
    """Rows join, leave, make room and go on with others while a token is drawn that nobody has read."""
    sampling = [Sampling(temperature, 0.05), Sampling(temperature, 0.05), Sampling(temperature, top_k=9)]
    requests = [
        asked(tiny_model, n, 4 + 9 * n, sampling=sampling[n % 3], seed=n, adapter=[None, *adapters][n % 2])
        for n in range(5)
    ]
    long = asked(tiny_model, 0, 3 * LONG_STAY, sampling=sampling[0])
    wanted = [alone(tiny_model, request) for request in (*requests, long)]
    decoder = Decoder(tiny_model, ROOM)
    decoder._draws_on_device = True
    heard = all_of(decoder, *requests, step_by_step=True)
    assert [each.text for each in heard] == wanted[:-1]
    again = [Heard(long, "a"), Heard(requests[4], "b")]
    for each in again:
        decoder.start(each.row)
    while (out := decoder.make_room()) is None:
        decoder.advance()
    assert out is again[0].row
    decoder.start(out)
    finish(decoder)
    assert [each.text for each in again] == [wanted[-1], wanted[4]]
    # The next turn goes on from what was computed ahead.
    prompt = (*requests[1].tokens, *heard[1].row.drawn, *chat_prompt(tiny_model, QUESTIONS[5]))
    turn = RowRequest(prompt, 9, sampling[1], adapter=requests[1].adapter)
    (told,) = all_of(decoder, turn)
    assert told.text == alone(tiny_model, turn)


def test_one_prompt_of_several_rows_is_computed_once(tiny_model, computed):
    request = asked(tiny_model, length=4)
    heard = all_of(Decoder(tiny_model, ROOM), *[request] * 4)
    assert sum(width for _, width in computed if width > 2) == len(request.tokens)
    assert len({each.text for each in heard}) == 1


def test_a_long_prompt_keeps_nobody_waiting(tiny_model):
    long = RowRequest(tuple(chat_prompt(tiny_model, QUESTIONS[0])) * 40, 4)
    assert len(long.tokens) > 4 * FILL_TOKENS
    wanted = alone(tiny_model, long)
    decoder = Decoder(tiny_model, ROOM)
    first, second = Heard(long), Heard(asked(tiny_model, 1, 3))
    decoder.start(first.row)
    decoder.start(second.row)
    for _ in range(4):
        decoder.advance()
    assert second.finish and not first.pieces
    finish(decoder)
    assert first.text == wanted


def test_who_is_gone_leaves_before_the_next_token(tiny_model):
    decoder = Decoder(tiny_model, ROOM)
    gone, stays = Heard(asked(tiny_model, 0, 4000)), Heard(asked(tiny_model, 1, 12))
    for each in (gone, stays):
        decoder.start(each.row)
    decoder.advance()
    gone.row.cancel()
    decoder.advance()
    assert decoder.count == 1 and isinstance(gone.error, Cancelled)
    finish(decoder)
    assert stays.text == alone(tiny_model, stays.row.request)


def test_a_row_that_makes_room_goes_on_where_it_was(tiny_model):
    wanted = alone(tiny_model, asked(tiny_model, 0, 150))
    decoder = Decoder(tiny_model, ROOM)
    heard, other = Heard(asked(tiny_model, 0, 150), "a"), Heard(asked(tiny_model, 1, 150), "b")
    decoder.start(heard.row)
    decoder.start(other.row)
    assert decoder.make_room() is None  # nobody has stayed for long
    while heard.row.stay < LONG_STAY:
        decoder.advance()
    out = decoder.make_room()
    assert out is not None and decoder.count == 1
    decoder.advance()
    decoder.start(out)
    finish(decoder)
    assert heard.text == wanted


def test_rows_that_the_memory_has_no_room_for_wait(tiny_model):
    requests = [asked(tiny_model, number, 40) for number in range(4)]
    wanted = [alone(tiny_model, request) for request in requests]
    per_token = Decoder(tiny_model, ROOM)._bytes_per_token
    decoder = Decoder(tiny_model, 2 * per_token * (FILL_TOKENS + 60))
    heard = [Heard(request) for request in requests]
    waiting = list(heard)
    while waiting or decoder.count:
        while waiting and decoder.has_room:
            decoder.start(waiting.pop().row)
        assert decoder.count <= 2
        decoder.advance()
    assert [each.text for each in heard] == wanted


def test_a_long_prompt_that_does_not_fit_beside_short_ones_waits_and_is_computed_once(tiny_model):
    long = RowRequest(tuple(chat_prompt(tiny_model, QUESTIONS[0])) * 20, 4)
    short = [asked(tiny_model, number, 60) for number in range(2)]
    wanted = [alone(tiny_model, request) for request in (*short, long)]
    per_token = Decoder(tiny_model, ROOM)._bytes_per_token
    decoder = Decoder(tiny_model, 3 * per_token * (FILL_TOKENS + 100))
    heard = [Heard(request) for request in (*short, long)]
    for each in heard:
        decoder.start(each.row)
        decoder.advance()
    advances = 0
    while decoder.count:
        assert not (decoder.set_back and decoder.has_room)  # nobody goes in before it
        decoder.advance()
        advances += 1
    assert advances < 100
    assert [each.text for each in heard] == wanted


@pytest.mark.parametrize(
    "step",
    [
        "inference.row_adapters:RowAdapters.use",
        "inference.chat_model:ChatModel.logits_at",
        "inference.prompts:KeptPrompts.find",
        "inference.decoder:Decoder._own_cache",
        "inference.prompts:LRUPromptCache.insert_cache",
        "inference.prompts:LRUPromptCache.fetch_nearest_cache",
        "inference.shared_prefix:BatchKVCache.merge",
        "inference.shared_prefix:BatchKVCache.extend",
        "inference.shared_prefix:BatchKVCache.filter",
        "inference.rows:Row.draw",
        "inference.answer_text:AnswerText.take",
    ],
)
@pytest.mark.parametrize("times", [1, 3, 40])
def test_what_fails_at_any_step_harms_nobody_else(tiny_model, adapters, monkeypatch, step, times):
    """An error that comes once, or a few times: a row ends with it, or says what it says alone."""
    requests = [asked(tiny_model, n, 4 + 3 * n, adapter=[None, *adapters][n % 3]) for n in range(4)]
    wanted = [alone(tiny_model, request) for request in requests]
    decoder = Decoder(tiny_model, ROOM)
    with monkeypatch.context() as patch:
        calls = breaks(patch, step, range(1, 1 + times))
        heard = all_of(decoder, *requests, step_by_step=True)
    assert len(calls) > 1, "it never broke"
    for each, text in zip(heard, wanted, strict=True):
        if each.error is not None:
            assert "it broke" in str(each.error)
        else:
            assert each.text == text and each.finish
    assert [each.text for each in all_of(decoder, *requests)] == wanted


def breaks(patch, place, which):
    """Let these calls of a method fail, counted from 0. Returns a list that grows with each call."""
    kind, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(f"unlearn_mlx.{kind}")
    inner = owner.__dict__[name]
    works = getattr(inner, "__func__", inner)
    calls = []

    def method(*arguments, **options):
        calls.append(name)
        if len(calls) - 1 in which:
            raise RuntimeError("it broke")
        return works(*arguments, **options)

    patch.setattr(owner, name, classmethod(method) if isinstance(inner, classmethod) else method)
    return calls


def test_a_row_that_always_fails_ends_and_the_others_are_answered(tiny_model, adapters, monkeypatch):
    requests = [asked(tiny_model, number, 30) for number in range(5)]
    wanted = [alone(tiny_model, request) for request in requests]
    poison = Heard(asked(tiny_model, 5, 30, adapter=adapters[0]))
    decoder = Decoder(tiny_model, ROOM)
    use = type(decoder.adapters).use

    def fails_for_poison(adapters, rows):
        if poison.row.weights in rows and len(poison.row.drawn) > 3:
            raise RuntimeError("poison")
        use(adapters, rows)

    monkeypatch.setattr(type(decoder.adapters), "use", fails_for_poison)
    heard = [Heard(request) for request in requests]
    for each in [*heard[:2], poison, *heard[2:]]:
        decoder.start(each.row)
    finish(decoder)
    assert "poison" in str(poison.error)
    assert [each.text for each in heard] == wanted


def test_an_adapter_that_is_missing_fails_its_row_alone(tiny_model, tmp_path):
    missing, base = all_of(
        Decoder(tiny_model, ROOM), asked(tiny_model, adapter=tmp_path / "none"), asked(tiny_model)
    )
    assert isinstance(missing.error, UserError)
    assert base.text


def test_scores_that_are_no_numbers_end_the_row(tiny_model, adapters):
    heard, base = all_of(
        Decoder(tiny_model, ROOM),
        asked(tiny_model, adapter=adapters[0], strength=float("nan")),
        asked(tiny_model, 1),
    )
    assert "no numbers" in str(heard.error)
    assert base.text == alone(tiny_model, base.row.request)


def test_log_probabilities_of_prompt_and_answer_are_those_of_the_model(tiny_model):
    request = asked(tiny_model, 0, 10, likeliest=3, scores_prompt=True)
    (heard,) = all_of(Decoder(tiny_model, ROOM), request)
    prompt = [token for piece in heard.pieces for token in piece.prompt]
    answer = [token for piece in heard.pieces for token in piece.tokens]
    tokens = [*request.tokens, *heard.row.drawn]
    assert len(prompt) == len(request.tokens) and len(answer) == 10
    assert prompt[0].log_probability is None
    assert b"".join(t.token for t in (*prompt, *answer)).decode(
        errors="replace"
    ) == tiny_model.tokenizer.decode(tokens)
    wanted = tiny_model.log_probabilities([tokens[:1]], [[tokens[1:]]])[0][0]
    found = [token.log_probability for token in (*prompt[1:], *answer)]
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    for token in answer:  # greedy: each is the likeliest, and comes first
        assert token.likeliest[0] == (token.token, token.log_probability)
        assert len(token.likeliest) == 3
