"""Work that several processes share is the work of one."""

import os
import signal

import numpy as np
import psutil
import pytest
from mlx.utils import tree_flatten

from tests.helpers import QUESTIONS, SENTENCES, chat_prompt, run_with_dataset, strong_adapter
from tests.test_training import WEIGHTS, loss_and_gradients, prepared, same_gradients
from unlearn_mlx import pipeline
from unlearn_mlx.compute.cpu_blas import blas_threads
from unlearn_mlx.compute.device import Device, current_device
from unlearn_mlx.compute.planner import CPU_PART_ROWS, usual_computation
from unlearn_mlx.compute.workers import ALONE, WorkerPool, worker_count
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.evaluation.divergence import divergence_from_base
from unlearn_mlx.evaluation.membership import token_scores
from unlearn_mlx.inference import loading
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.inference.generation import TWO_FROM, Request, generate
from unlearn_mlx.inference.loading import load_by_name, model_workers
from unlearn_mlx.sft import parallel
from unlearn_mlx.sft.batches import make_batch
from unlearn_mlx.sft.trainer import reference_top_k

pytestmark = pytest.mark.skipif(current_device().is_gpu, reason="only CPUs have workers")


@pytest.fixture
def lost():
    """What was said of workers that were lost."""
    return []


@pytest.fixture
def workers(tiny_model, lost):
    with WorkerPool(load_by_name, (str(tiny_model.source.folder),), 1, lost.append) as pool:
        yield pool


def asked(model, count=TWO_FROM + 5):
    return [
        Request(f"r{i}", chat_prompt(model, QUESTIONS[i % len(QUESTIONS)] * (1 + i % 3)), 10 + i % 4, 0.8)
        for i in range(count)
    ]


def fails_elsewhere(model, parts, process):
    if os.getpid() != process:
        raise ValueError("no such thing here")
    yield from (part * 10 for part in parts)


@pytest.mark.parametrize("adapted", [False, True])
def test_shared_answers_are_those_of_one_process(tiny_model, workers, adapted):
    if adapted:
        strong_adapter(tiny_model)
    answers = generate(tiny_model, asked(tiny_model), 3, workers=workers)
    assert answers == generate(tiny_model, asked(tiny_model), 3)
    assert workers.count == 1


def test_what_a_worker_adapted_for_one_call_is_gone_in_the_next(tiny_model, workers):
    plain = generate(tiny_model, asked(tiny_model), 0, workers=workers)
    adapter = strong_adapter(tiny_model)
    assert generate(tiny_model, asked(tiny_model), 0, workers=workers) != plain
    adapter.switch(False)
    assert generate(tiny_model, asked(tiny_model), 0, workers=workers) == plain


def test_shared_scores_are_those_of_one_process(tiny_model, workers):
    strong_adapter(tiny_model)
    prompts = [chat_prompt(tiny_model, question) for question in QUESTIONS]
    texts = [[tiny_model.text_tokens("a baker"), tiny_model.text_tokens("in a small town")] for _ in prompts]
    together = tiny_model.log_probabilities(prompts, texts, workers=workers)
    single = tiny_model.log_probabilities(prompts, texts)
    for some, others in zip(together, single, strict=True):
        for values, expected in zip(some, others, strict=True):
            np.testing.assert_array_equal(values, expected)
    assert workers.count == 1


def step_of(model, adapter, rows, references, prefix, workers):
    """The losses and gradients of a step on all rows."""
    way = usual_computation(current_device())
    training = parallel.Training(model, adapter, rows, references, prefix, WEIGHTS, way)
    with parallel.shared_training(training, workers):
        parts, gradients = parallel.step_gradients(training, list(range(len(rows))), workers)
    return parts, dict(tree_flatten(gradients))


def test_a_shared_step_has_the_losses_and_gradients_of_one_process(tiny_model, workers):
    rows, _, prefix = prepared(tiny_model)
    references = reference_top_k(tiny_model, rows, prefix, workers)
    for shared, own in zip(references, reference_top_k(tiny_model, rows, prefix), strict=True):
        assert (shared is None) == (own is None)
        assert own is None or all(np.array_equal(vars(own)[name], vars(shared)[name]) for name in vars(own))
    adapter = strong_adapter(tiny_model)
    loss, expected = loss_and_gradients(tiny_model, make_batch(rows, references, prefix))
    assert len(rows) > 2 * CPU_PART_ROWS, "three parts, for two processes"
    parts, gradients = step_of(tiny_model, adapter, rows, references, prefix, workers)
    assert workers.count == 1
    total = parts[0] + WEIGHTS.divergence * parts[1] + WEIGHTS.negative_preference * parts[2]
    assert total.item() == pytest.approx(loss, rel=1e-5)
    assert same_gradients(gradients, expected)
    # To the bit: a run that goes on with another number of workers is the same run.
    alone, single = step_of(tiny_model, adapter, rows, references, prefix, ALONE)
    assert np.array_equal(alone, parts)
    assert all(np.array_equal(single[name], gradients[name]) for name in single)
    # The worker's model is plain again.
    adapter.switch(False)
    answers = generate(tiny_model, asked(tiny_model), 0, workers=workers)
    assert answers == generate(tiny_model, asked(tiny_model), 0)


def test_a_worker_that_is_killed_costs_time_alone_and_is_told_of(tiny_model, workers, lost):
    pid = workers.workers[0].pid
    expected = generate(tiny_model, asked(tiny_model), 0)
    os.kill(pid, signal.SIGKILL)
    assert generate(tiny_model, asked(tiny_model), 0, workers=workers) == expected
    assert not workers.count and not psutil.pid_exists(pid)
    assert len(lost) == 1 and "killed by signal 9" in lost[0]


def test_what_a_worker_cannot_do_is_done_here_and_told_of(tiny_model, workers, lost):
    here = os.getpid()
    assert workers.map(fails_elsewhere, tiny_model, range(3), (here,)) == [0, 10, 20]
    assert not workers.count
    assert len(lost) == 1 and "ValueError: no such thing here" in lost[0]


def test_a_worker_that_cannot_load_its_model_says_why(tiny_model, tmp_path, lost):
    with WorkerPool(load_by_name, (str(tmp_path),), 1, lost.append) as workers:
        answers = generate(tiny_model, asked(tiny_model), 0, workers=workers)
    assert answers == generate(tiny_model, asked(tiny_model), 0)
    assert len(lost) == 1 and "config.json" in lost[0]


def test_a_lost_worker_is_one_message_among_the_events_of_the_run(tiny_folder, workplace, monkeypatch):
    run = run_with_dataset(workplace / "run", tiny_folder)
    started = []

    class Doomed(WorkerPool):
        def __init__(self, *given):
            super().__init__(*given)
            started.append(self.workers[0])
            os.kill(self.workers[0].pid, signal.SIGKILL)

    monkeypatch.setattr(loading, "WorkerPool", Doomed)
    monkeypatch.setattr(loading, "worker_count", lambda *_: 1)
    pipeline.run_stages(run, ["train"])
    assert len(started) == 1 and run.stage_is_done("train")
    told = [event for event in run.events() if "worker" in getattr(event, "text", "")]
    assert [event.kind for event in told] == ["message"]
    assert "killed by signal 9" in told[0].text


def test_cancelled_work_leaves_no_process(tiny_model, workers, lost):
    pid = workers.workers[0].pid
    with pytest.raises(Cancelled):
        generate(tiny_model, asked(tiny_model), 0, lambda: True, workers)
    assert not workers.count and not psutil.pid_exists(pid)
    assert not lost


@pytest.mark.parametrize(
    ("gigabytes", "available", "cores", "count"),
    [
        (0.1, 16, 8, 0),  # a small model has done its work before a worker has begun
        (0.5, 16, 1, 0),
        (0.5, 16, 2, 1),
        (0.5, 16, 16, 3),
        (0.5, 3, 16, 1),  # half of the memory that is free stays so
        (0.5, 2, 16, 0),
    ],
)
def test_a_large_model_has_a_worker_for_each_other_core_that_memory_is_there_for(
    gigabytes, available, cores, count, monkeypatch
):
    monkeypatch.delenv("UNLEARN_WORKERS", raising=False)
    cpu, gpu = Device("cpu", "here", 0, cores), Device("metal", "M", 0, cores)
    assert worker_count(int(gigabytes * 2**30), available * 2**30 + 1, cpu) == count
    assert worker_count(int(gigabytes * 2**30), available * 2**30 + 1, gpu) == 0
    monkeypatch.setenv("UNLEARN_WORKERS", "2")
    assert worker_count(1, 1, cpu) == 2, "as the user says"


def test_workers_last_for_a_while(tiny_model):
    with model_workers(tiny_model) as workers:
        assert not workers.count
    with model_workers(tiny_model, 1) as workers:
        [worker] = workers.workers
        process = psutil.Process(worker.pid)
    assert not process.is_running()
    assert not workers.count
    assert not ALONE.count


def test_a_core_is_left_to_whatever_else_runs(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert [blas_threads(cores) for cores in (1, 2, 4, 8, 16)] == [1, 1, 1, 1, 3]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert blas_threads(4) == 2  # as the user says


def test_another_shape_of_adapter_is_no_hindrance(tiny_model, workers):
    Adapter(tiny_model.model, LoraShape(3, 2.0, 1))
    answers = generate(tiny_model, asked(tiny_model), 0, workers=workers)
    assert answers == generate(tiny_model, asked(tiny_model), 0)


def test_shared_texts_get_the_scores_of_one_process(tiny_model, workers):
    adapter = strong_adapter(tiny_model)
    prompts = [chat_prompt(tiny_model, question) for question in QUESTIONS]
    texts = [tiny_model.text_tokens(sentence) for sentence in (*SENTENCES, *SENTENCES)][: len(prompts)]

    def work(pool):
        scores = [scores.log_probabilities for scores in token_scores(tiny_model, SENTENCES, pool)]
        return [*scores, np.array(divergence_from_base(tiny_model, adapter, prompts, texts, pool))]

    for ours, wanted in zip(work(workers), work(None), strict=True):
        assert np.array_equal(ours, wanted)
    assert workers.count == 1 and adapter.is_on
