"""The whole stage on a random model: what it writes, what it keeps, how it goes on after a cut."""

import json

import pytest

from tests.helpers import WIZARD, run_with_dataset, strong_adapter
from unlearn_mlx import paths
from unlearn_mlx.config import make_settings
from unlearn_mlx.errors import Cancelled
from unlearn_mlx.evaluation import scoring
from unlearn_mlx.evaluation.base_results import base_results, shipped_results
from unlearn_mlx.evaluation.generated_probes import known_words, make_probes
from unlearn_mlx.evaluation.probes import (
    QUESTION_ANSWER,
    Probe,
    even_share,
    write_row,
)
from unlearn_mlx.evaluation.schema import read_evaluation
from unlearn_mlx.evaluation.stage import asked_probes, evaluate, every_probe, nearness
from unlearn_mlx.inference.generation import Completion
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import Work
from unlearn_mlx.session.create import new_run
from unlearn_mlx.topics import Topic

TOPIC = Topic("Zorbing", neighbours=["Merlin"], entities={"people": {"Hermione": []}})


@pytest.fixture
def run(tmp_path, tiny_folder, tiny_model, monkeypatch):
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    run = run_with_dataset(tmp_path / "run", tiny_folder, topic=TOPIC)
    adapter = strong_adapter(tiny_model)
    adapter.save(run.file("adapter"))
    run.mark("train", "done")
    adapter.detach()
    scopes = ("topic", "neighbour")
    probes = [
        Probe(f"p-{n}", scopes[n % 2], "open", "Hermione", f"What is {n}?", "x", (r"[a-m]",))
        for n in range(6)
    ]
    write_rows(run.file("probes.jsonl"), [write_row(probe) for probe in probes])
    # The general probes that ship are many, and change nothing here.
    monkeypatch.setattr("unlearn_mlx.evaluation.stage.probe_files", lambda topic: [])
    return run


def cached(tmp_path):
    return sorted((tmp_path / "cache" / "base-evaluations").glob("*"))


def test_an_evaluation_says_what_each_answer_is(run, tiny_model):
    evaluate(tiny_model, Work(run, run.settings))
    evaluation = read_evaluation(run.path)
    for probe in evaluation.probes:
        assert probe.form == QUESTION_ANSWER
        for outcome in (probe.base, probe.adapter):
            assert len(outcome.labels) == len(outcome.answers)
            assert 0 <= outcome.rouge <= 1
    assert evaluation.verdict.name and evaluation.verdict.reason
    assert evaluation.nearest_training_question.near == 0
    for name, found in evaluation.intervals.items():
        for who in ("base", "adapter"):
            low, high = getattr(found, who)
            assert low - 1e-9 <= evaluation.of(who)[name] <= high + 1e-9, name
    assert evaluation.adapter["neutral/divergence"] > 0
    assert {
        "topic/label leak",
        "neighbour/label known",
        "topic/form/question-answer",
    } <= evaluation.base.keys()


def test_the_base_is_scored_once(run, tiny_model, tmp_path, monkeypatch):
    evaluate(tiny_model, Work(run, run.settings))
    first = run.file("evaluation.json").read_bytes()
    assert [path.suffix for path in cached(tmp_path)] == [".json"]
    asked = []
    score_block = scoring._score_block
    monkeypatch.setattr(scoring, "_score_block", lambda *given: asked.append(1) or score_block(*given))
    evaluate(tiny_model, Work(run, run.settings))
    assert run.file("evaluation.json").read_bytes() == first
    assert len(asked) == 1  # the adapter's one block
    assert paths.cache_folder() == tmp_path / "cache"


def test_a_cut_evaluation_goes_on_with_the_same_bytes(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 2)
    evaluate(tiny_model, Work(run, run.settings))
    whole = run.file("evaluation.json").read_bytes()
    run.file("evaluation.json").unlink()
    for path in cached(tmp_path):
        path.unlink()
    for cut in (20, 100, 180):
        asked = iter(range(10**9))
        with pytest.raises(Cancelled):
            evaluate(tiny_model, Work(run, run.settings, lambda asked=asked, cut=cut: next(asked) >= cut))
    evaluate(tiny_model, Work(run, run.settings))
    assert run.file("evaluation.json").read_bytes() == whole
    assert not list(run.file("journal").glob("evaluation*"))
    said = [event for event in run.events() if event.kind == "progress"]
    assert {event.unit for event in said} >= {"base probes", "adapter probes"}


def test_the_nearest_probe_is_named_and_counted(run):
    probes = [
        Probe("a", "topic", "open", "", "Where is Harry Potter living?", "x"),
        Probe("b", "topic", "open", "", "Who was Harry Potter?", "x"),
        Probe("c", "topic", "open", "", "How many legs has a spider?", "x"),
    ]
    found = nearness(probes, run)
    assert found.near == 1
    assert (found.probe, found.question) == ("Who was Harry Potter?", "Who is Harry Potter?")
    assert found.similarity >= found.limit


def test_only_what_the_base_repeats_is_asked_of_an_unknown_topic(run, tiny_model, monkeypatch):
    """Questions as the model might write them; the answers to every second one change each time."""

    def written(*given, **more):
        from unlearn_mlx.runs.records import Question

        name = given[3]
        return [
            Question(id=f"{name}-{n}", question=f"Name the {n} of it.", subject="Zorbing") for n in range(8)
        ], {}

    def answered(model, requests, seed, is_cancelled, workers):
        completions = []
        for request in requests:
            question, sample = request.key.split("/")
            # Of the questions that can be asked of anything one is answered steadily.
            is_plain = question.startswith("plain")
            steady = question == "plain-topic-0-2" if is_plain else int(question[-1]) % 2 == 0
            text = f"It is plastic{question[-1]}." if steady else f"It is thing{sample}."
            completions.append(Completion(request.key, text, 5, True))
        return completions

    monkeypatch.setattr("unlearn_mlx.evaluation.generated_probes.write_questions", written)
    monkeypatch.setattr("unlearn_mlx.evaluation.generated_probes.generate", answered)
    probes = make_probes(tiny_model, Work(run, run.settings))
    asked = [probe for probe in probes if probe.form == QUESTION_ANSWER]
    written = {f"Name the {n} of it." for n in (0, 2, 4, 6)}
    assert {probe.question for probe in asked} == {"Introduce Zorbing in one sentence.", *written}
    assert {probe.scope for probe in asked} == {"topic", "neighbour"}
    others = [probe for probe in probes if probe.form != QUESTION_ANSWER]
    assert {probe.form for probe in others} >= {"prefix injection", "role play", "affirmative suffix"}
    for probe in others:
        assert not [pattern for pattern in probe.leak if pattern.strip("\\b") in probe.question]


OTHERS = [
    ["A brilliant, classic tale."],
    ["The brilliant, classic idea of a baker."],
    *([f"It is number {n} of London."] for n in range(60)),
]


@pytest.mark.parametrize(
    ("answers", "known"),
    [
        # Names come before other words, and how the model always talks is no knowledge.
        (["His friend is Doctor Watson, a brilliant surgeon."] * 5, ["Doctor", "Watson"]),
        (["He smokes a pipe, a classic."] * 4 + ["I do not know."], ["smokes", "pipe"]),
        (["It is a brilliant tale.", "A brilliant idea."] * 2, []),
        # What was asked, in any form, is no answer, nor what every third answer says anyway.
        (["It is Holmes's, in London."] * 5, []),
        (["The Sherlocks."] * 5, []),
        (["He has a dog.", "He owns a bird.", "A cart.", "He likes tea.", "A lamp."], []),
        (["El Café Müller."] * 5, ["Café", "Müller"]),
    ],
)
def test_known_is_what_most_answers_say_and_other_answers_do_not(answers, known):
    assert known_words("Who is with Sherlock Holmes?", answers, OTHERS) == known


def test_a_topic_with_probes_is_asked_in_every_form(tmp_path, tiny_folder):
    run = run_with_dataset(tmp_path / "wizard", tiny_folder, topic=WIZARD)
    forms = {probe.form for probe in every_probe(run)}
    assert len(forms) == 11
    assert len({probe.id for probe in every_probe(run)}) == len(every_probe(run))
    assert json.dumps([write_row(probe) for probe in every_probe(run)[:1]])


def test_fewer_probes_are_an_even_share_of_every_form(tmp_path, tiny_folder):
    every = every_probe(run_with_dataset(tmp_path / "wizard", tiny_folder, topic=WIZARD))
    few = asked_probes(run_with_dataset(tmp_path / "few", tiny_folder, topic=WIZARD, probes=60))
    assert 60 <= len(few) < 90
    assert {(probe.scope, probe.form) for probe in few} == {(probe.scope, probe.form) for probe in every}
    assert few == [probe for probe in every if probe in few]
    assert even_share(every, len(every)) == every
    assert even_share([], 5) == []


def test_a_first_run_takes_what_the_base_says_from_what_ships(embedded_model, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    run = new_run("Harry Potter", "smollm2", "standard", {}, tmp_path / "run").make()
    probes = asked_probes(run)
    found = base_results(embedded_model, Work(run, run.settings), probes, lambda *_: None)
    assert found.keys() == {probe.id for probe in probes}
    assert cached(tmp_path) == []  # nothing was measured
    choices = [probe for probe in probes if probe.kind == "choice"][::6]
    said = scoring.score_probes(embedded_model, choices, 4, 0, lambda *_: None, lambda: False)
    # A near tie may fall the other way on another processor.
    same = [said[probe.id]["chosen"] == found[probe.id]["chosen"] for probe in choices]
    assert len(choices) > 8 and sum(same) >= len(choices) - 1


def test_what_ships_is_taken_for_the_same_weights_and_seed_alone(embedded_model):
    weights = embedded_model.source.weights_sha256
    assert shipped_results(weights, make_settings("standard"))
    assert not shipped_results("another model's", make_settings("standard"))
    assert not shipped_results(weights, make_settings("standard", seed=1))
    assert not shipped_results(weights, make_settings("quick"))
