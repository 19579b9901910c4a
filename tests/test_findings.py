"""What is said of a change, and what metrics are called: equal things under equal names."""

import json

import pytest

from tests.evaluated import (
    USUAL,
    choice_probe,
    evaluated_run,
    evaluation_of,
    open_probe,
    read_back,
    write_evaluation,
)
from unlearn_mlx.cli.rendering import show_result
from unlearn_mlx.evaluation.findings import (
    FELL,
    KEPT,
    LOST,
    ROSE,
    UNCLEAR,
    change_in_words,
    kept_or_lost,
    scope_in_words,
)
from unlearn_mlx.evaluation.gate import gate_answers, gate_value
from unlearn_mlx.evaluation.keys import answers_in, any_of, key_of
from unlearn_mlx.evaluation.schema import open_leak, read_evaluation, shown_metrics


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        ((-0.09, 0.05), KEPT),
        ((0.02, 0.3), KEPT),
        ((-0.1, 0.1), UNCLEAR),
        ((-0.44, 0.0), UNCLEAR),  # 56 % -> 33 % of 16 questions
        ((-0.4, -0.01), LOST),
        ((-0.04, -0.01), LOST),  # small, and sure
    ],
)
def test_kept_excludes_a_loss_of_ten_points_and_lost_excludes_none(difference, word):
    assert kept_or_lost(difference) == word


def test_a_change_is_said_as_far_as_its_interval_goes():
    evaluation = evaluation_of(*USUAL)
    assert change_in_words(read_back(evaluation), "topic/choice", True) == ""
    for ends, low, high in (
        ([-0.6, -0.2], FELL, LOST),
        ([-0.2, 0.2], UNCLEAR, UNCLEAR),
        ([0.1, 0.2], ROSE, KEPT),
    ):
        evaluation["intervals"] = {"topic/choice": {"difference": ends}}
        assert change_in_words(read_back(evaluation), "topic/choice", True) == low
        assert change_in_words(read_back(evaluation), "topic/choice", False) == high
    # What is no share is held against a tenth of the base's value.
    evaluation["base"]["neutral/entropy"] = 5.0
    for ends, word in (([-0.4, 0.1], KEPT), ([-0.6, 0.1], UNCLEAR)):
        evaluation["intervals"] = {"neutral/entropy": {"difference": ends}}
        assert change_in_words(read_back(evaluation), "neutral/entropy", False) == word


@pytest.mark.parametrize(
    ("count", "lost", "word"), [(6, 0, UNCLEAR), (80, 0, KEPT), (80, 20, LOST), (8, 1, UNCLEAR)]
)
def test_a_scope_is_kept_only_where_enough_was_asked(count, lost, word):
    probes = [
        {**choice_probe(f"n{n}", "a wizard", "a baker" if n < lost else "a wizard", "a wizard"), "entity": ""}
        for n in range(count)
    ]
    assert scope_in_words(read_back(evaluation_of(*probes)), "neighbour") == word
    assert scope_in_words(read_back(evaluation_of(*probes)), "topic") == ""


def test_a_key_says_how_many_answers_it_counts():
    key = any_of("topic/open leak", 5)
    assert key == "topic/open leak, any of 5" and answers_in(key) == 5
    assert answers_in("topic/choice") is None and answers_in("topic/<b>, any of many") is None
    metrics = {any_of("topic/open leak", 12): 0.1, key: 0.1, "topic/choice": 0.2}
    assert key_of(metrics, "topic/open leak") == "topic/open leak, any of 12"
    assert key_of(metrics, "topic/choice") == "topic/choice" and key_of(metrics, "topic/open") is None


def old_evaluation(**more):
    """As they were written before their keys had numbers."""
    evaluation = evaluation_of(*USUAL) | {"samples": 4, **more}
    for whose, value in (("base", 0.75), ("adapter", 0.25)):
        del evaluation[whose]["topic/open leak, any of 2"]
        evaluation[whose] |= {"topic/open leak": value, "neighbour/open known": 0.5, "topic/named": 0.5}
    evaluation["intervals"] = {"topic/open leak": {"base": [0.5, 0.9]}}
    return evaluation


def test_an_old_evaluation_is_read_with_its_number_of_answers(tmp_path):
    run = evaluated_run(tmp_path / "run", old_evaluation())
    evaluation = read_evaluation(run.path)
    assert open_leak(evaluation) == "topic/open leak, any of 5"
    assert evaluation.base["neighbour/open known, any of 5"] == 0.5
    assert evaluation.intervals["topic/open leak, any of 5"].base == [0.5, 0.9]
    assert not [key for key in evaluation.base if key == "topic/open leak"]
    assert gate_value(evaluation, "leak") == 0.25 and gate_answers(evaluation, "leak") == "any of 5 answers"
    assert read_back(evaluation.as_row()) == evaluation
    # Names that were asked counted then: that is another figure, and not shown as today's.
    assert not [metric for metric in shown_metrics(evaluation) if "named" in metric.key]
    # The number may be the run's setting, or has to be counted.
    without = old_evaluation()
    del without["samples"]
    assert open_leak(read_back(without | {"settings": {"samples": 0}})) == "topic/open leak, any of 1"
    assert open_leak(read_back(without)) == "topic/open leak, any of 2"


def test_the_table_says_the_number_and_what_was_found(tmp_path, capsys):
    evaluation = evaluation_of(*USUAL)
    assert [metric.name for metric in shown_metrics(read_back(evaluation))][:2] == [
        "topic: open questions that leak in any of 2 answers",
        "topic: multiple choice right",
    ]
    show_result(read_back(evaluation))
    assert "wanted" in capsys.readouterr().out
    difference = {"base": [0.2, 0.8], "adapter": [0.1, 0.6], "difference": [-0.3, 0.1]}
    evaluation["intervals"] = {"neighbour/choice": difference}
    evaluation["control"] = {
        "probes": 12,
        "base": {"topic/choice": 0.8},
        "adapter": {"topic/choice": 0.3},
        "random": {"topic/choice": 0.7},
        "intervals": {"topic/choice": {"random": [0.5, 0.9]}},
    }
    show_result(read_back(evaluation))
    said = " ".join(capsys.readouterr().out.split())
    assert "not told apart" in said and "kept" not in said
    assert "Random adapter of the same norm, on 12 of the probes" in said and "70% [50, 90]" in said


def test_one_answer_is_said_as_one(tmp_path):
    probe = open_probe("p", ["Hogwarts"], ["a bakery"], "Hogwarts")
    evaluation = old_evaluation(samples=0, probes=[probe])
    run = evaluated_run(tmp_path / "run")
    write_evaluation(run, json.loads(json.dumps(evaluation)))
    names = [metric.name for metric in shown_metrics(read_evaluation(run.path))]
    assert "topic: open questions that leak in the one answer" in names
