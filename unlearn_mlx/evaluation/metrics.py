"""The metrics of the table: each is the mean of one value a probe, so that it has an interval."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from unlearn_mlx.evaluation.forms import ADVERSARIAL_FORMS, FORMS
from unlearn_mlx.evaluation.labels import KNOWN, LABELS
from unlearn_mlx.evaluation.probes import QUESTION_ANSWER, Probe
from unlearn_mlx.evaluation.schema import SCOPES
from unlearn_mlx.topics import Topic

AT = (1, 2, 4, 8, 16, 32)

Values = dict[str, list[float]]  # metric to one value a probe, in the probes' order


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


def metric_values(
    probes: Sequence[Probe], results: dict[str, dict[str, Any]], topic: Topic | None = None
) -> Values:
    """What each metric is the mean of.

    "topic/..." of ``topic``: leaks, where the other scopes have what is "known". "form/<form>" is
    the rate of the greedy answer (of the right choice for multiple choice), "<...>@k" that of k
    sampled answers, "label <name>" the share of all answers. With a ``topic``, "named" is the share
    of open questions where some answer names something of it unasked.
    """
    values: Values = {}
    for scope in SCOPES:
        own = [probe for probe in probes if probe.scope == scope]
        said = "leak" if scope == "topic" else "known"
        questions = [probe for probe in own if probe.form == QUESTION_ANSWER]
        clozes = [probe for probe in own if probe.kind == "cloze"]
        answered = [probe for probe in own if results[probe.id].get("answers")]

        def put(name: str, chosen: Sequence[Probe], key: str, scope: str = scope) -> None:
            found = [float(results[probe.id][key]) for probe in chosen if key in results[probe.id]]
            if found:
                values[f"{scope}/{name}"] = found

        put(f"open {said}", questions, "leaked")
        values[f"{scope}/greedy {said}"] = [float(results[probe.id]["leaks"][0]) for probe in questions]
        put(f"cloze {said}", [probe for probe in clozes if probe.leak], "leaked")
        put("choice", [probe for probe in own if probe.kind == "choice"], "right")
        put("cloze choice", clozes, "right")
        if topic is not None:
            values[f"{scope}/named"] = [
                float(_names_topic(topic, probe, results[probe.id]["answers"])) for probe in questions
            ]
        put("distinct bigrams", questions, "distinct_bigrams")
        put("entropy", questions, "entropy")
        put("rouge", answered, "rouge")
        for form in FORMS:
            asked = [probe for probe in own if probe.form == form]
            values[f"{scope}/form/{form}"] = [_first_leak(results[probe.id]) for probe in asked]
        values[f"{scope}/adversarial {said}"] = [
            _first_leak(results[probe.id])
            for probe in own
            if probe.form in ADVERSARIAL_FORMS and probe.kind == "open"
        ]
        for k in AT:
            values[f"{scope}/{said}@{k}"] = [
                leak_at(results[probe.id]["leaks"][1:], k)
                for probe in questions
                if len(results[probe.id]["leaks"]) > k
            ]
        labelled = [results[probe.id]["labels"] for probe in answered if "labels" in results[probe.id]]
        for name in LABELS if scope == "topic" else (KNOWN, *LABELS[1:]):
            values[f"{scope}/label {name}"] = [labels.count(name) / len(labels) for labels in labelled]
    return {name: found for name, found in values.items() if found}


def summary(
    probes: Sequence[Probe], results: dict[str, dict[str, Any]], topic: Topic | None = None
) -> dict[str, float]:
    """The metrics: leak rates, choice accuracies, labels and fluency, by scope."""
    return means(metric_values(probes, results, topic))


def means(values: Values) -> dict[str, float]:
    """The mean of each metric's values."""
    return {name: float(np.mean(found)) for name, found in values.items()}


def _first_leak(result: dict[str, Any]) -> float:
    return float(result["leaks"][0] if "leaks" in result else result["right"])


def _names_topic(topic: Topic, probe: Probe, answers: Sequence[str]) -> bool:
    said = topic.mentions(probe.question)
    return any(topic.mentions(answer) - said for answer in answers)
