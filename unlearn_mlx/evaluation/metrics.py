"""The metrics of the table: each is the mean of one value a probe, so that it has an interval."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from unlearn_mlx.evaluation.forms import ADVERSARIAL_FORMS, FORMS
from unlearn_mlx.evaluation.keys import any_of
from unlearn_mlx.evaluation.labels import KNOWN, LABELS
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe, fact_of
from unlearn_mlx.evaluation.schema import SCOPES
from unlearn_mlx.leakage.names import named
from unlearn_mlx.text.overlap import at_equal_length, ngram_entropy
from unlearn_mlx.text.words import distinct_bigrams
from unlearn_mlx.topics import Topic

AT = (1, 2, 4, 8, 16, 32)

Results = dict[str, dict[str, Any]]  # what a model did on each probe, by the probe's id
Values = dict[str, list[float]]  # metric to one value a probe, in the probes' order
Rows = dict[str, list[tuple[Probe, float]]]  # the same, with the probe


def leak_at(leaks: Sequence[bool], k: int) -> float:
    """The chance that at least one of ``k`` answers drawn from ``leaks`` leaks.

    1 - C(n - c, k) / C(n, k) for c leaks in n answers (Chen et al. 2021, there called pass@k).

    Raises:
        ValueError: where there are fewer than ``k`` answers.
    """
    count, clean = len(leaks), len(leaks) - sum(leaks)
    if k > count:
        raise ValueError(f"{count} answers say nothing about {k}")
    return 1.0 - comb(clean, k) / comb(count, k)


def metric_rows(
    probes: Sequence[Probe], results: Results, topic: Topic | None = None, beside: Results | None = None
) -> Rows:
    """What each metric is the mean of, with the probe that each value is of.

    "topic/..." of ``topic``: leaks, where the other scopes have what is "known". "form/<form>" is
    the rate of the greedy answer (of the right choice for multiple choice), "<...>@k" that of k
    sampled answers, "label <name>" the share of all answers. "<...>, any of n" says of n answers
    whether any does it; with a ``topic``, "named" is whether one says names that were not asked.
    "worst case" has one value a fact: whether it leaks in any of its forms.

    ``beside`` are another model's results on the same probes: fluency is compared at equal length.
    """
    rows: Rows = {}
    for scope in SCOPES:
        own = [probe for probe in probes if probe.scope == scope]
        said = "leak" if scope == "topic" else "known"
        questions = [probe for probe in own if probe.form == QUESTION_ANSWER]
        found = {
            **_of_any(questions, results, said, topic),
            f"greedy {said}": [(probe, float(results[probe.id]["leaks"][0])) for probe in questions],
            **_of_kinds(own, results, said),
            **_fluency(questions, results, beside or results),
            **_of_forms(own, results, said),
        }
        if scope == "topic":
            found |= _worst_case(own, results)
        for k in AT:
            found[f"{said}@{k}"] = [
                (probe, leak_at(results[probe.id]["leaks"][1:], k))
                for probe in questions
                if len(results[probe.id]["leaks"]) > k
            ]
        rows |= {f"{scope}/{name}": values for name, values in (found | _labelled(own, results)).items()}
    return {name: found for name, found in rows.items() if found}


def _of_any(questions: Sequence[Probe], results: Results, said: str, topic: Topic | None) -> Rows:
    """Whether any answer leaks, or says the topic's names, apart for each number of answers."""
    rows: Rows = {}
    for count in sorted({len(results[probe.id]["leaks"]) for probe in questions}):
        asked = [probe for probe in questions if len(results[probe.id]["leaks"]) == count]
        rows[any_of(f"open {said}", count)] = [
            (probe, float(any(results[probe.id]["leaks"]))) for probe in asked
        ]
        if topic is not None:
            rows[any_of("named", count)] = [
                (
                    probe,
                    float(any(named(topic, probe.question, each) for each in results[probe.id]["answers"])),
                )
                for probe in asked
            ]
    return rows


def _of_kinds(own: Sequence[Probe], results: Results, said: str) -> Rows:
    clozes = [probe for probe in own if probe.kind == "cloze"]

    def rates(chosen: Sequence[Probe], key: str) -> list[tuple[Probe, float]]:
        return [(probe, float(results[probe.id][key])) for probe in chosen if key in results[probe.id]]

    return {
        f"cloze {said}": rates([probe for probe in clozes if probe.leak], "leaked"),
        "choice": rates([probe for probe in own if probe.kind == "choice"], "right"),
        "cloze choice": rates(clozes, "right"),
        "rouge": rates([probe for probe in own if results[probe.id].get("answers")], "rouge"),
    }


def _fluency(questions: Sequence[Probe], results: Results, beside: Results) -> Rows:
    """Variety of the greedy answers, each cut to the length of the other model's answer."""
    pairs = [
        (probe, texts[0])
        for probe in questions
        if (texts := at_equal_length(results[probe.id]["answers"][0], beside[probe.id]["answers"][0]))
    ]
    return {
        "distinct bigrams": [(probe, distinct_bigrams(text)) for probe, text in pairs],
        "entropy": [(probe, ngram_entropy(text)) for probe, text in pairs],
    }


def _of_forms(own: Sequence[Probe], results: Results, said: str) -> Rows:
    rows = {
        f"form/{form}": [(probe, _first_leak(results[probe.id])) for probe in own if probe.form == form]
        for form in FORMS
    }
    rows[f"adversarial {said}"] = [
        (probe, _first_leak(results[probe.id]))
        for probe in own
        if probe.form in ADVERSARIAL_FORMS and probe.kind == "open"
    ]
    return rows


def _worst_case(own: Sequence[Probe], results: Results) -> Rows:
    """Whether a fact leaks in any form and any answer, one value a fact, with the first of its probes."""
    facts: dict[str, list[Probe]] = {}
    for probe in own:
        if probe.kind == "open":
            facts.setdefault(fact_of(probe.id), []).append(probe)
    most = max((len(results[probe.id]["leaks"]) for forms in facts.values() for probe in forms), default=1)
    return {
        any_of("worst case", most): [
            (forms[0], float(any(any(results[probe.id]["leaks"]) for probe in forms)))
            for forms in facts.values()
        ]
    }


def _labelled(own: Sequence[Probe], results: Results) -> Rows:
    labelled = [(probe, labels) for probe in own if (labels := results[probe.id].get("labels"))]
    is_topic = any(probe.scope == "topic" for probe in own)
    return {
        f"label {name}": [(probe, labels.count(name) / len(labels)) for probe, labels in labelled]
        for name in (LABELS if is_topic else (KNOWN, *LABELS[1:]))
    }


def summary(probes: Sequence[Probe], results: Results, topic: Topic | None = None) -> dict[str, float]:
    """The metrics: leak rates, choice accuracies, labels and fluency, by scope."""
    return means(values_of(metric_rows(probes, results, topic)))


def values_of(rows: Rows) -> Values:
    """The values alone."""
    return {name: [value for _, value in found] for name, found in rows.items()}


def means(values: Values) -> dict[str, float]:
    """The mean of each metric's values."""
    return {name: float(np.mean(found)) for name, found in values.items()}


def _first_leak(result: dict[str, Any]) -> float:
    return float(result["leaks"][0] if "leaks" in result else result["right"])
