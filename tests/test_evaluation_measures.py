"""Scores that must equal their plain definitions."""

import math
import random
import zlib
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from tests.helpers import SENTENCES, chat_prompt, strong_adapter
from unlearn_mlx.evaluation.divergence import divergence_from_base
from unlearn_mlx.evaluation.intervals import clusters_of, compare, interval, most_unseen
from unlearn_mlx.evaluation.membership import (
    ATTACKS,
    Passage,
    area_under_curve,
    attack_scores,
    membership_metrics,
    read_passages,
    token_scores,
)
from unlearn_mlx.evaluation.metrics import leak_at
from unlearn_mlx.evaluation.side_effects import compare_neutral, neutral_prompts, texts_for
from unlearn_mlx.text.overlap import at_equal_length, ngram_entropy, rouge_l_recall
from unlearn_mlx.text.words import distinct_bigrams, words
from unlearn_mlx.topics import load_topic, shipped_topics

WORDS = "the old man and a Café O'Neill's 12 3,5 müde sea—salt, the the x_y".split(" ")


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logits_of(model, tokens):
    return np.array(model.model(mx.array([list(tokens)])).astype(mx.float32))[0].astype(np.float64)


def test_rouge_l_recall_equals_the_reference_package():
    source = random.Random(0)
    reference = RougeScorer(["rougeL"])
    for _ in range(1000):
        answer, wanted = (
            " ".join(source.choice(WORDS) for _ in range(source.randrange(0, 14))) for _ in range(2)
        )
        expected = reference.score(wanted, answer)["rougeL"].recall
        assert rouge_l_recall(answer, wanted) == pytest.approx(expected, abs=1e-6), (answer, wanted)


def test_entropy_is_that_of_word_pairs_and_triples():
    # Three different pairs, one of them twice: 1/2 and 1/4 each. Three triples, each once.
    text = "a b a b c"
    pairs = 0.5 * 1 + 2 * 0.25 * 2
    triples = math.log2(3)
    assert ngram_entropy(text) == pytest.approx((2 / 3 * pairs + 4 / 3 * triples) / 2)
    assert ngram_entropy("") == ngram_entropy("one") == 0
    assert ngram_entropy("the ball the ball the ball") < ngram_entropy("he threw her the red ball")


def test_a_short_answer_is_as_varied_as_the_same_words_of_a_long_one():
    long = "The castle stands on a hill, and the castle stands on a hill, and nobody knows since when."
    short = "The castle stands on a hill."
    assert ngram_entropy(short) < ngram_entropy(long) and distinct_bigrams(short) > distinct_bigrams(long)
    cut, same = at_equal_length(long, short)
    assert words(cut) == words(same) == words(short)
    assert ngram_entropy(cut) == ngram_entropy(same) and distinct_bigrams(cut) == distinct_bigrams(same)
    assert at_equal_length(short, long) == (same, cut)
    # A stammer is one at any length.
    stammer, _ = at_equal_length("the hill the hill the hill the hill", short)
    assert ngram_entropy(stammer) < 0.7 * ngram_entropy(same)
    assert at_equal_length("Yes.", long) is None and at_equal_length(long, "") is None


def test_divergence_from_the_base_equals_its_definition(tiny_model):
    prompts = [chat_prompt(tiny_model, question) for question in ("Who is Merlin?", "Why?", "What is it?")]
    texts = [tiny_model.text_tokens(sentence) for sentence in SENTENCES[1:4]]
    texts += [tiny_model.text_tokens("a")]
    prompts.append(prompts[0])
    adapter = strong_adapter(tiny_model)
    found = divergence_from_base(tiny_model, adapter, prompts, texts)
    for prompt, text, value in zip(prompts, texts, found, strict=True):
        places = slice(len(prompt) - 1, len(prompt) + len(text) - 1)
        adapter.switch(False)
        base = log_softmax(logits_of(tiny_model, [*prompt, *text]))[places]
        adapter.switch(True)
        other = log_softmax(logits_of(tiny_model, [*prompt, *text]))[places]
        expected = (np.exp(base) * (base - other)).sum(axis=-1).mean()
        assert expected > 0.01
        assert value == pytest.approx(expected, rel=1e-3)


def test_membership_scores_equal_their_definitions(tiny_model):
    found = token_scores(tiny_model, SENTENCES)
    for text, scores in zip(SENTENCES, found, strict=True):
        tokens = tiny_model.document_tokens(text)
        rows = log_softmax(logits_of(tiny_model, tokens))[:-1]
        own = rows[np.arange(len(tokens) - 1), tokens[1:]]
        means = (np.exp(rows) * rows).sum(axis=-1)
        deviations = np.sqrt((np.exp(rows) * rows**2).sum(axis=-1) - means**2)
        fifth = max(1, int(0.2 * len(own)))
        expected = {
            "loss": own.mean(),
            "zlib": own.sum() / len(zlib.compress(text.encode())),
            "min-k": np.sort(own)[:fifth].mean(),
            "min-k++": np.sort((own - means) / deviations)[:fifth].mean(),
        }
        values = attack_scores(text, scores)
        assert values.keys() == set(ATTACKS)
        for name in ATTACKS:
            assert values[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name


def test_the_area_under_the_curve_is_the_chance_of_the_right_order():
    assert area_under_curve([3, 4], [1, 2]) == 1
    assert area_under_curve([1, 2], [1, 2]) == 0.5
    assert area_under_curve([1, 3], [2, 2]) == 0.5
    passages = [Passage(id="a", scope="topic", text=""), Passage(id="b", scope="neighbour", text="")]
    rows = [dict.fromkeys(ATTACKS, 1.0), dict.fromkeys(ATTACKS, 2.0)]
    assert set(membership_metrics(passages, rows).values()) == {0.0}


@pytest.mark.parametrize(
    ("leaks", "k", "chance"), [((1, 0, 0, 0), 1, 0.25), ((1, 1, 0), 2, 1.0), ((0, 0), 2, 0)]
)
def test_leak_at_k_is_the_chance_over_all_draws(leaks, k, chance):
    assert leak_at(leaks, k) == pytest.approx(chance)


def test_leak_at_more_than_was_drawn_is_an_error():
    with pytest.raises(ValueError, match="2 answers"):
        leak_at([True, False], 3)


def test_intervals_hold_the_mean_and_narrow_with_more_probes():
    source = np.random.default_rng(1)
    few, many = source.random(20), source.random(2000)
    low, high = interval(few)
    assert low < few.mean() < high
    assert np.diff(interval(many)) < np.diff(interval(few)) / 5
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    # 95 % of such intervals hold the true mean.
    held = sum(low <= 0.5 <= high for low, high in (interval(source.random(30), seed) for seed in range(100)))
    assert 85 <= held <= 100


def test_an_interval_by_cluster_is_that_of_the_clusters_means():
    # Twelve facts in nine forms, each either known in all of them or in none.
    facts = [float(number < 2) for number in range(12)]
    forms = [value for value in facts for _ in range(9)]
    names = [f"fact {number}" for number in range(12) for _ in range(9)]
    assert interval(forms, 3, names) == pytest.approx(interval(facts, 3))
    assert np.diff(interval(forms, 3)) < 0.5 * np.diff(interval(forms, 3, names))
    # Clusters of several sizes: the mean is of the values, not of the clusters.
    low, high = interval([1.0, 1.0, 1.0, 0.0], 0, ["a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)
    drawn = interval([0.0, 1.0] * 50, 0, [str(number // 2) for number in range(100)])
    assert drawn == (0.5, 0.5)  # every cluster has the same mean


def test_intervals_by_cluster_hold_the_mean_where_values_go_together():
    source = np.random.default_rng(5)
    clusters = [str(number) for number in range(25) for _ in range(8)]
    held = {True: 0, False: 0}
    for seed in range(100):
        values = np.repeat(source.random(25), 8) + 0.1 * source.standard_normal(200)
        for by_cluster in held:
            low, high = interval(values, seed, clusters if by_cluster else None)
            held[by_cluster] += low <= 0.5 <= high
    assert held[True] >= 85 > 65 > held[False]


@pytest.mark.parametrize(
    ("asked", "clusters"),
    [
        # The same facts in several forms go by fact, whatever they are about.
        ([("a", "x"), ("a/role-play", "x"), ("b", "x")], ["a", "a", "b"]),
        ([(str(n), f"entity {n // 2}") for n in range(12)], [f"entity {n // 2}" for n in range(12)]),
        ([(str(n), "") for n in range(12)], [str(n) for n in range(12)]),
        # All about one entity: it would be one cluster, and its interval a point.
        ([(str(n), "Zorbing") for n in range(12)], [str(n) for n in range(12)]),
    ],
)
def test_clusters_are_facts_in_several_forms_and_entities_elsewhere(asked, clusters):
    assert clusters_of(asked) == clusters


def test_what_was_never_seen_in_few_clusters_is_not_excluded():
    assert most_unseen(12) == pytest.approx(0.265, abs=1e-3)  # Clopper-Pearson for 0 of 12
    assert most_unseen(48) == pytest.approx(0.074, abs=1e-3)
    names = [str(number // 9) for number in range(108)]
    found = compare([1.0] * 108, [0.0] * 108, 0, names, are_shares=True)
    assert found["adapter"] == pytest.approx([0.0, 0.265], abs=1e-3)
    assert found["base"] == pytest.approx([1 - 0.265, 1.0], abs=1e-3)
    assert found["difference"] == pytest.approx([-1.0, -1 + 0.265], abs=1e-3)
    same = compare([0.0, 1.0] * 6, [0.0, 1.0] * 6, 0, are_shares=True)
    assert same["difference"] == pytest.approx([-0.265, 0.265], abs=1e-3)
    assert compare([0.3] * 9, [0.2] * 9)["adapter"] == pytest.approx([0.2, 0.2])


def test_a_difference_is_paired():
    base = np.random.default_rng(0).random(50)
    found = compare(base, base - 0.1)
    assert found["difference"] == pytest.approx([-0.1, -0.1])
    assert found["base"][1] - found["base"][0] > 0.05
    with pytest.raises(ValueError):
        compare([], [])


def test_an_adapter_that_does_nothing_leaves_neutral_texts_alone(tiny_model):
    passages = [
        Passage(id="a", scope="topic", text=SENTENCES[1]),
        Passage(id="b", scope="neighbour", text=SENTENCES[5]),
    ]

    def compared(adapter):
        return compare_neutral(
            tiny_model, adapter, neutral_prompts(), passages, 0, lambda *_: None, lambda: False
        )

    adapter = strong_adapter(tiny_model)
    base, changed, membership = compared(adapter)
    assert min(changed["neutral/raw divergence"]) > 0.01
    assert np.mean(changed["neutral/divergence"]) > 0.01
    assert set(base["neutral/divergence"]) == {0.0}
    assert membership["base"].keys() == membership["adapter"].keys()
    adapter.set_strength(0.0)
    base, still, _ = compared(adapter)
    assert max(still["neutral/raw divergence"]) < 1e-5
    assert max(still["neutral/divergence"]) < 1e-5
    assert still["neutral/entropy"] == base["neutral/entropy"]


@pytest.mark.parametrize("slug", sorted(shipped_topics()))
def test_there_are_passages_on_both_sides(slug):
    topic = load_topic(shipped_topics()[slug])
    passages = read_passages(topic)
    for scope in ("topic", "neighbour"):
        own = [passage.text for passage in passages if passage.scope == scope]
        assert len(set(own)) == 12 and min(map(len, own)) > 100
    neighbours = [passage.text for passage in passages if passage.scope == "neighbour"]
    assert not [text for text in neighbours if topic.mentions(text)]
    assert not [prompt for prompt in neutral_prompts() if topic.mentions(prompt)]


def test_a_small_run_is_compared_on_half_of_the_texts_of_each_scope():
    topic = load_topic(shipped_topics()["harry-potter"])
    every, few = texts_for(topic, 260), texts_for(topic, 80)
    assert every == (neutral_prompts(), read_passages(topic))
    assert len(few[0]) == len(every[0]) // 2 and set(few[0]) < set(every[0])
    counts = [Counter(passage.scope for passage in passages) for _, passages in (every, few)]
    assert counts[1] == {scope: count // 2 for scope, count in counts[0].items()}
