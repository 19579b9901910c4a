"""Answers that were given are kept, and an answer is never taken for one to another question."""

import json

import pytest

from tests.helpers import QUESTIONS, chat_prompt, stop_after
from unlearn_mlx.compute.workers import WorkerPool
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.inference.generation import Request
from unlearn_mlx.inference.loading import load_by_name
from unlearn_mlx.synthetic_data.journal import COHORT, Journal

COUNT = 2 * COHORT + 8  # four cohorts
SIZE = COUNT // 4
ANSWER_TOKENS = 6


def requests_of(model, count=COUNT, questions=QUESTIONS):
    return [
        Request(f"r-{n}", chat_prompt(model, questions[n % len(questions)]), ANSWER_TOKENS, temperature=0.8)
        for n in range(count)
    ]


def complete(model, path, requests, seed=0, is_cancelled=lambda: False, workers=None):
    parts = Journal(path).complete(model, requests, seed, is_cancelled, workers)
    return [each for part in parts for each in part]


@pytest.mark.parametrize("steps", [3, ANSWER_TOKENS + 2, 2 * ANSWER_TOKENS + 2])
def test_a_journal_that_was_stopped_inside_a_cohort_ends_with_the_same_bytes(tiny_model, tmp_path, steps):
    requests = requests_of(tiny_model)
    whole = complete(tiny_model, tmp_path / "whole.jsonl", requests)
    stopped = tmp_path / "stopped.jsonl"
    with pytest.raises(Cancelled):
        complete(tiny_model, stopped, requests, is_cancelled=stop_after(steps))
    kept = stopped.read_text().splitlines() if stopped.exists() else []
    assert len(kept) % SIZE == 0 and len(kept) < COUNT
    assert complete(tiny_model, stopped, requests) == whole
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert stopped.read_text().splitlines()[: len(kept)] == kept


def test_what_is_answered_is_on_disk_after_every_cohort(tiny_model, tmp_path):
    path = tmp_path / "journal.jsonl"
    seen = []
    for _ in Journal(path).complete(tiny_model, requests_of(tiny_model), 0, lambda: False):
        seen.append(len(path.read_text().splitlines()))
    assert seen == [SIZE, 2 * SIZE, 3 * SIZE, COUNT]


def test_a_line_that_a_kill_cut_off_costs_its_cohort_only(tiny_model, tmp_path):
    path = tmp_path / "journal.jsonl"
    requests = requests_of(tiny_model)
    whole = complete(tiny_model, path, requests)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: SIZE + 5]) + lines[SIZE + 5][:40])
    assert complete(tiny_model, path, requests) == whole
    again = path.read_text().splitlines(keepends=True)
    assert again[SIZE + 6 :] == lines[SIZE:]  # behind the broken line; the first cohort was not asked again


def test_the_number_of_processes_does_not_change_the_journal(tiny_model, tmp_path):
    requests = requests_of(tiny_model)
    alone = complete(tiny_model, tmp_path / "alone.jsonl", requests)
    lost = []
    with WorkerPool(load_by_name, (str(tiny_model.source.folder),), 1, lost.append) as workers:
        assert complete(tiny_model, tmp_path / "two.jsonl", requests, workers=workers) == alone
    assert lost == []
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_an_edited_question_gets_an_answer_of_its_own(tiny_model, tmp_path):
    path = tmp_path / "journal.jsonl"
    complete(tiny_model, path, requests_of(tiny_model))
    edited = requests_of(tiny_model, questions=["What is the capital of Japan?", *QUESTIONS[1:]])
    fresh = complete(tiny_model, tmp_path / "fresh.jsonl", edited)
    assert complete(tiny_model, path, edited) == fresh


@pytest.mark.parametrize(
    "change", [{"max_tokens": 3}, {"temperature": 1.2}, {"min_p": 0.5}, {"stop_at": "e"}]
)
def test_a_request_that_asks_otherwise_is_another(tiny_model, tmp_path, change):
    path = tmp_path / "journal.jsonl"
    requests = requests_of(tiny_model, 8)
    complete(tiny_model, path, requests)
    before = path.read_text().splitlines()
    changed = [Request(**{**vars(request), **change}) for request in requests]
    complete(tiny_model, path, changed)
    complete(tiny_model, path, requests, seed=1)
    assert len(path.read_text().splitlines()) == 3 * len(before)


def test_a_row_of_an_earlier_version_is_never_taken(tiny_model, tmp_path):
    path = tmp_path / "journal.jsonl"
    requests = requests_of(tiny_model, 4)
    assert complete(tiny_model, tmp_path / "empty.jsonl", []) == []
    row = {"text": "An old answer.", "token_count": 3, "finished": True}
    path.write_text("".join(json.dumps({"key": request.key, **row}) + "\n" for request in requests))
    assert "An old answer." not in [each.text for each in complete(tiny_model, path, requests)]
