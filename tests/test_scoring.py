import numpy as np
import pytest

from tests.helpers import WIZARD, strong_adapter
from unlearn_mlx.evaluation.probes import Probe, read_probes, write_row
from unlearn_mlx.evaluation.scoring import choice_scores, score_probes, summary
from unlearn_mlx.files import write_rows

CHOICES = ("a baker", "a wizard", "a train", "Tokyo")
PROBES = [
    Probe("o", "topic", "open", "", "Who is Harry Potter?", "a wizard", (r"\bwizard\b",)),
    Probe("c", "topic", "choice", "", "What is Harry Potter?", "a wizard", (), CHOICES),
    Probe("z", "general", "cloze", "", "The capital of Japan is", "Tokyo", ("tokyo",), CHOICES),
]


def score(model, samples=2, seed=0):
    return score_probes(model, PROBES, samples, seed, lambda *_: None, lambda: False)


def test_probes_come_back_from_their_file(tmp_path):
    write_rows(tmp_path / "probes.jsonl", [write_row(probe) for probe in PROBES])
    assert read_probes(tmp_path / "probes.jsonl") == PROBES


def test_the_likeliest_choice_is_the_one_chosen(tiny_model):
    results = score(tiny_model)
    values = choice_scores(tiny_model, [PROBES[1]])[0]
    assert results["c"]["chosen"] == CHOICES[int(np.argmax(values))]
    assert results["c"]["right"] == (results["c"]["chosen"] == "a wizard")


def test_open_probes_have_a_greedy_and_the_sampled_answers(tiny_model):
    results = score(tiny_model)
    assert len(results["o"]["answers"]) == 3
    assert len(results["z"]["answers"]) == 1
    assert results == score(tiny_model)
    assert results["o"]["answers"][0] == score(tiny_model, seed=1)["o"]["answers"][0]


def test_an_adapter_changes_the_score_and_off_it_does_not(tiny_model):
    before = score(tiny_model)
    adapter = strong_adapter(tiny_model)
    assert score(tiny_model)["o"]["answers"] != before["o"]["answers"]
    adapter.switch(False)
    assert score(tiny_model) == before


def test_the_figures_are_shares_of_their_probes():
    def open_result(*leaks):
        return {
            "answers": ["He met Hermione."],
            "leaks": leaks,
            "leaked": any(leaks),
            "distinct_bigrams": 1.0,
        }

    results = {
        "o": open_result(False, True),
        "c": {"chosen": "a wizard", "right": True},
        "z": {**open_result(True), "chosen": "a baker", "right": False},
    }
    figures = summary(PROBES, results, WIZARD)
    assert figures["topic/open leak"] == 1
    assert figures["topic/choice"] == 1
    assert figures["topic/named"] == 1
    assert figures["general/cloze choice"] == pytest.approx(0)
