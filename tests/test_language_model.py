import resource

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from tests.helpers import QUESTIONS, SENTENCES, chat_prompt
from unlearn_mlx.compute import cpu_math
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.inference.patches import Patches
from unlearn_mlx.inference.shared_prefix import attention, common_prefix, sees_shared_prefixes
from unlearn_mlx.models.embedded import embedded_folder
from unlearn_mlx.models.registry import resolve_model


def plain_log_probabilities(model, prompt, text):
    """By the whole softmax over the whole row."""
    tokens = [*prompt, *text]
    scores = nn.log_softmax(model.model(mx.array([tokens]))[0].astype(mx.float32), axis=-1)
    return [scores[len(prompt) - 1 + i, token].item() for i, token in enumerate(text)]


@pytest.mark.parametrize("shared", [True, False])
def test_log_probabilities_equal_the_plain_softmax(tiny_model, untied_folder, shared):
    for model in (tiny_model, load_model(resolve_model(str(untied_folder)))):
        prompts = [chat_prompt(model, question) for question in QUESTIONS[:5]]
        prompts.append([*prompts[0][:-1], prompts[1][-1]])  # two of one length
        if not shared:
            prompts[2] = model.text_tokens("Merlin")
        sentences = [model.text_tokens(sentence[: 8 + 9 * i]) for i, sentence in enumerate(SENTENCES[:5])]
        # Several texts to a prompt, of different lengths and numbers.
        texts = [sentences[: 1 + i % 3] for i in range(5)] + [sentences[3:4]]
        together = model.log_probabilities(prompts, texts, batch_size=3)
        for prompt, of_prompt, found in zip(prompts, texts, together, strict=True):
            for text, values in zip(of_prompt, found, strict=True):
                assert values.shape == (len(text),)
                assert np.allclose(values, plain_log_probabilities(model, prompt, text), atol=2e-4)


def test_no_texts_have_no_log_probabilities(tiny_model):
    assert tiny_model.log_probabilities([], []) == []


def test_a_conversation_ends_with_the_token_that_closes_the_message(tiny_model):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    tokens, start = tiny_model.conversation_tokens(messages)
    assert tiny_model.text_of(tokens[start:]) == "Hello there"
    assert tokens[-1] in tiny_model.stop_tokens
    assert tokens[:start] == tiny_model.chat_tokens(messages[:1])


def test_the_template_writes_the_only_start_token(tiny_model):
    first = tiny_model.chat_tokens([{"role": "user", "content": "Hi"}])[:2]
    assert first[0] != first[1]


def test_common_prefix_is_short_of_the_whole_of_any_row():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5]]) == [1, 2]
    assert common_prefix([[1, 2], [1, 2, 3]]) == [1]
    assert common_prefix([[7, 8, 9]]) == [7, 8]
    assert common_prefix([[1], [2]]) == []


def test_the_fast_exponential_is_right_to_a_millionth():
    x = np.linspace(-86, 87, 100_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(np.array(cpu_math.exponential(mx.array(x))) / exact - 1).max() < 1e-6


def test_the_fast_exponential_ends_without_overflow():
    values = cpu_math.exponential(mx.array([-1e30, -200.0, 200.0, 0.0]))
    assert values[0].item() < 1e-37
    assert mx.isfinite(values).all().item()
    assert values[3].item() == 1


def test_swiglu_and_its_gradients_equal_plain_mlx():
    source = np.random.default_rng(0)
    gate, up = (mx.array(source.normal(0, 4, (7, 33)).astype(np.float32)) for _ in range(2))

    def plain(gate, up):
        return gate * mx.sigmoid(gate) * up

    assert mx.allclose(cpu_math.swiglu(gate, up), plain(gate, up), rtol=1e-5, atol=1e-6)
    got = mx.grad(lambda g, u: (cpu_math.swiglu(g, u) ** 2).sum(), argnums=(0, 1))(gate, up)
    wanted = mx.grad(lambda g, u: (plain(g, u) ** 2).sum(), argnums=(0, 1))(gate, up)
    for a, b in zip(got, wanted, strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_log_sum_exp_equals_plain_mlx():
    logits = mx.array(np.random.default_rng(0).normal(0, 8, (5, 321)).astype(np.float32))
    assert mx.allclose(cpu_math.log_sum_exp(logits), mx.logsumexp(logits, axis=-1), atol=1e-5)


def test_a_cpu_computes_in_float32(embedded_model):
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("on a GPU the weights stay quantized")
    weights = embedded_model.model.model.layers[0].self_attn.q_proj.weight
    assert weights.dtype == mx.float32


def test_the_embedded_model_is_converted_once(embedded_model):
    before = {path: path.stat().st_mtime_ns for path in embedded_model.source.folder.iterdir()}
    assert resolve_model("smollm2") == embedded_model.source
    assert {path: path.stat().st_mtime_ns for path in embedded_model.source.folder.iterdir()} == before


def test_a_damaged_conversion_is_made_again(embedded_model, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / embedded_model.source.folder.name
    shutil.copytree(embedded_model.source.folder, folder)
    (folder / "model.safetensors").write_bytes(b"half a file")
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    assert resolve_model("smollm2").weights_sha256 == embedded_model.source.weights_sha256
    # The lock stays: a process that waits for it must find the same file.
    assert {path.name for path in tmp_path.iterdir()} <= {folder.name, f".{folder.name}.lock"}


def test_a_disk_that_is_full_at_the_first_use_is_one_line(tmp_path):
    """Files may not grow beyond some bytes here, which is told to a writer as a full disk is."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(EnvironmentCannot, match="is the disk full") as caught:
            embedded_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "\n" not in str(caught.value) and ".building" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_attention_to_shared_prefixes_is_that_to_whole_rows(mask):
    def drawn(*shape):
        return mx.random.normal(shape)

    rows, heads, groups, length, width = 6, 4, 2, 3, 8
    queries = drawn(rows, heads, length, width)
    own = drawn(rows, groups, length, width), drawn(rows, groups, length, width)
    segments = [(drawn(count, groups, 5, width), drawn(count, groups, 5, width)) for count in (1, 3, rows)]
    if mask == "padding":
        seen = mx.arange(length) >= mx.array([0, 1, 2, 0, 1, 2])[:, None, None, None]
        mask = seen & (mx.arange(length)[:, None] >= mx.arange(length))
    causal = mx.arange(length)[:, None] >= mx.arange(length)
    own_mask = causal if isinstance(mask, str) else mx.ones_like(causal) if mask is None else mask
    whole_mask = mx.concatenate(
        [
            mx.ones((rows, 1, length, 15), mx.bool_),
            mx.broadcast_to(own_mask, (rows, 1, length, length)),
        ],
        axis=-1,
    )

    def whole(queries, part):
        repeated = [mx.repeat(segment[part], rows // segment[part].shape[0], axis=0) for segment in segments]
        return mx.concatenate([*repeated, own[part]], axis=2)

    def plain(queries):
        return mx.fast.scaled_dot_product_attention(
            queries, whole(queries, 0), whole(queries, 1), scale=0.3, mask=whole_mask
        )

    def shared(queries):
        return attention(queries, *own, segments, scale=0.3, mask=mask)

    assert mx.allclose(shared(queries), plain(queries), atol=1e-5)
    cotangent = drawn(rows, heads, length, width)
    gradients = [mx.vjp(way, [queries], [cotangent])[1][0] for way in (shared, plain)]
    assert mx.allclose(*gradients, atol=1e-5)


def test_an_architecture_with_attention_of_its_own_is_seen_not_to_share():
    from mlx_lm.models import gemma2

    shape = gemma2.ModelArgs(
        model_type="gemma2", hidden_size=32, num_hidden_layers=2, intermediate_size=64,
        num_attention_heads=4, head_dim=8, rms_norm_eps=1e-6, vocab_size=50, num_key_value_heads=2,
    )  # fmt: skip
    model = gemma2.Model(shape)
    patches = Patches(model)
    patches.share_prefixes()
    assert not sees_shared_prefixes(model)
    patches.release()
