"""Work that several processes share is the work of one."""

import os
import signal

import numpy as np
import psutil
import pytest
from mlx.utils import tree_flatten

from tests.helpers import QUESTIONS, SENTENCES, chat_prompt, strong_adapter
from tests.test_training import WEIGHTS, loss_and_gradients, prepared, same_gradients
from unlearn_mlx.compute.cpu_blas import blas_threads
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.workers import Helper, helper_count, with_helpers
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.evaluation.divergence import divergence_from_base
from unlearn_mlx.evaluation.membership import token_scores
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.generation import SHARED_FROM, Request, generate
from unlearn_mlx.sft import parallel
from unlearn_mlx.sft.batches import make_batch
from unlearn_mlx.sft.trainer import reference_top_k

pytestmark = pytest.mark.skipif(current_device().is_gpu, reason="only CPUs have helpers")


@pytest.fixture
def helped(tiny_model):
    tiny_model.helpers = [Helper(str(tiny_model.source.folder))]
    yield tiny_model
    for helper in tiny_model.helpers:
        helper.close()


def asked(model, count=SHARED_FROM + 5):
    return [
        Request(f"r{i}", chat_prompt(model, QUESTIONS[i % len(QUESTIONS)] * (1 + i % 3)), 10 + i % 4, 0.8)
        for i in range(count)
    ]


def alone(model, work):
    """What one process makes of it."""
    kept, model.helpers = model.helpers, []
    try:
        return work()
    finally:
        model.helpers = kept


@pytest.mark.parametrize("adapted", [False, True])
def test_shared_answers_are_those_of_one_process(helped, adapted):
    if adapted:
        strong_adapter(helped)
    answers = generate(helped, asked(helped), 3)
    assert answers == alone(helped, lambda: generate(helped, asked(helped), 3))
    assert len(helped.helpers) == 1


def test_what_the_helper_adapted_for_one_call_is_gone_in_the_next(helped):
    plain = generate(helped, asked(helped), 0)
    adapter = strong_adapter(helped)
    assert generate(helped, asked(helped), 0) != plain
    adapter.switch(False)
    assert generate(helped, asked(helped), 0) == plain


def test_shared_scores_are_those_of_one_process(helped):
    strong_adapter(helped)
    prompts = [chat_prompt(helped, question) for question in QUESTIONS]
    texts = [[helped.text_tokens("a baker"), helped.text_tokens("in a small town")] for _ in prompts]
    together = helped.log_probabilities(prompts, texts)
    single = alone(helped, lambda: helped.log_probabilities(prompts, texts))
    for some, others in zip(together, single, strict=True):
        for values, expected in zip(some, others, strict=True):
            np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_shared_step_has_the_losses_and_gradients_of_one_process(helped):
    rows, _, prefix = prepared(helped)
    references = reference_top_k(helped, rows, prefix)
    adapter = strong_adapter(helped)
    loss, expected = loss_and_gradients(helped, make_batch(rows, references, prefix))
    training = parallel.Training(helped, adapter, rows, references, prefix, WEIGHTS)
    parallel.begin(training)
    parts, gradients = parallel.step_gradients(training, list(range(len(rows))))
    parallel.end(helped)
    assert len(helped.helpers) == 1
    total = parts[0] + WEIGHTS.divergence * parts[1] + WEIGHTS.negative_preference * parts[2]
    assert total.item() == pytest.approx(loss, rel=1e-4)
    assert same_gradients(dict(tree_flatten(gradients)), expected)
    # Its model is plain again.
    adapter.switch(False)
    assert generate(helped, asked(helped), 0) == alone(helped, lambda: generate(helped, asked(helped), 0))


def test_a_helper_that_is_killed_costs_time_alone(helped):
    pid = helped.helpers[0]._process.pid
    expected = alone(helped, lambda: generate(helped, asked(helped), 0))
    os.kill(pid, signal.SIGKILL)
    assert generate(helped, asked(helped), 0) == expected
    assert not helped.helpers and not psutil.pid_exists(pid)


def test_cancelled_work_leaves_no_process(helped):
    pid = helped.helpers[0]._process.pid
    with pytest.raises(Cancelled):
        generate(helped, asked(helped), 0, lambda: True)
    assert not helped.helpers and not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("gigabytes", "available", "cores", "count"),
    [
        (0.1, 16, 8, 0),  # a small model has done its work before a helper has begun
        (0.5, 16, 1, 0),
        (0.5, 16, 2, 1),
        (0.5, 16, 16, 3),
        (0.5, 3, 16, 1),  # half of the memory that is free stays so
        (0.5, 2, 16, 0),
    ],
)
def test_a_large_model_has_a_helper_for_each_other_core_that_memory_is_there_for(
    gigabytes, available, cores, count
):
    cpu, gpu = Device("cpu", "here", 0, cores), Device("metal", "M", 0, cores)
    assert helper_count(int(gigabytes * 2**30), available * 2**30 + 1, cpu) == count
    assert helper_count(int(gigabytes * 2**30), available * 2**30 + 1, gpu) == 0


def test_helpers_last_for_a_while(tiny_model):
    with with_helpers(tiny_model):
        assert not tiny_model.helpers
    with with_helpers(tiny_model, 1):
        [helper] = tiny_model.helpers
        process = psutil.Process(helper._process.pid)
    assert not process.is_running()
    assert not tiny_model.helpers


def test_a_core_is_left_to_whatever_else_runs(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert [blas_threads(1, cores) for cores in (1, 2, 4, 16)] == [1, 1, 3, 15]
    assert [blas_threads(4, cores) for cores in (1, 2, 4, 16)] == [1, 1, 1, 3]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert blas_threads(4, 4) == 2  # as the user says


def test_another_shape_of_adapter_is_no_hindrance(helped):
    Adapter(helped.model, LoraShape(3, 2.0, 1))
    answers = generate(helped, asked(helped), 0)
    assert answers == alone(helped, lambda: generate(helped, asked(helped), 0))


def test_shared_texts_get_the_scores_of_one_process(helped):
    adapter = strong_adapter(helped)
    prompts = [chat_prompt(helped, question) for question in QUESTIONS]
    texts = [helped.text_tokens(sentence) for sentence in (*SENTENCES, *SENTENCES)][: len(prompts)]

    def work():
        scores = [scores.log_probabilities for scores in token_scores(helped, SENTENCES)]
        return [*scores, np.array(divergence_from_base(helped, adapter, prompts, texts))]

    for ours, wanted in zip(work(), alone(helped, work), strict=True):
        assert np.allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert len(helped.helpers) == 1 and adapter.is_on
