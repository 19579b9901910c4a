"""Runs with an evaluation that is written by hand, so that a test knows what must be shown."""

import copy
import json
from pathlib import Path
from typing import Any

from unlearn_mlx.config import make_settings
from unlearn_mlx.evaluation.records import Evaluation, ScoredProbe
from unlearn_mlx.runs.records import ModelIdentity
from unlearn_mlx.runs.run import MADE, STAGES, Run, create_run, open_run
from unlearn_mlx.topics import Topic

MODEL = {"name": "smollm2", "revision": "r1", "sha256": "ab" * 32}

# Markup, a script's end, terminal codes, direction marks, half a surrogate pair, templates.
HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> </script> <!-- ]]> \u202egnp.exe\u202c "
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \x00 [bold]rich[/bold] **md** {{ 7 * 7 }} {% raw %} &amp; \ud800 end"
)


def open_probe(
    id: str,
    base: list[str],
    adapter: list[str],
    leak: str,
    scope: str = "topic",
    entity: str = "Hogwarts",
    question: str = "What is it called?",
    **more: Any,
) -> dict[str, Any]:
    def outcome(answers: list[str]) -> dict[str, Any]:
        leaks = [leak.lower() in answer.lower() for answer in answers]
        return {"answers": answers, "leaks": leaks, "leaked": any(leaks), "distinct_bigrams": 1.0}

    return {
        "id": id,
        "scope": scope,
        "kind": "open",
        "entity": entity,
        "question": question,
        "answer": leak,
        "leak": [leak.lower()],
        "choices": [],
        "base": outcome(base),
        "adapter": outcome(adapter),
        **more,
    }


def choice_probe(id: str, base: str, adapter: str, answer: str, scope: str = "neighbour") -> dict[str, Any]:
    return {
        "id": id,
        "scope": scope,
        "kind": "choice",
        "entity": "Merlin",
        "question": "Who was he?",
        "answer": answer,
        "leak": [],
        "choices": ["a wizard", "a baker", "a king", "a horse"],
        "base": {"chosen": base, "right": base == answer},
        "adapter": {"chosen": adapter, "right": adapter == answer},
    }


def evaluation_of(*probes: dict[str, Any]) -> dict[str, Any]:
    """An evaluation of these probes."""
    base = {
        "topic/open leak, any of 2": 0.75,
        "topic/choice": 0.8,
        "neighbour/choice": 0.5,
        "topic/distinct bigrams": 0.9,
    }
    return {
        "model": MODEL,
        "samples": 1,
        "base": base,
        "adapter": {**base, "topic/open leak, any of 2": 0.25},
        "nearest_training_question": {"similarity": 40.0, "probe": "a", "question": "b", "limit": 88},
        "probes": list(probes),
    }


def read_back(evaluation: dict[str, Any]) -> Evaluation:
    """An evaluation as it is read from a run."""
    return Evaluation.model_validate(evaluation)


def read_probes_back(*probes: dict[str, Any]) -> list[ScoredProbe]:
    """Probes as they are read from an evaluation."""
    return [ScoredProbe.model_validate(probe) for probe in probes]


USUAL = (
    open_probe("p1", ["It is Hogwarts.", "A school."], ["It is a bakery.", "The École."], "Hogwarts"),
    open_probe("p2", ["Quidditch!", "No."], ["It is quidditch.", "A game."], "Quidditch", entity="Games"),
    choice_probe("n1", "a wizard", "a wizard", "a wizard"),
    choice_probe("n2", "a wizard", "a baker", "a wizard"),
)


def evaluated_run(path: Path, evaluation: dict[str, Any] | None = None, **settings: Any) -> Run:
    run = create_run(path, Topic("Harry Potter"), MODEL, make_settings("quick", **settings), "cpu: here")
    write_evaluation(run, evaluation or evaluation_of(*USUAL))
    return run


def as_if_done(run: Run) -> Run:
    """A run whose stages are all done, as far as their files go."""
    for stage in STAGES:
        for name in MADE[stage]:
            run.file(name).parent.mkdir(exist_ok=True)
            run.file(name).touch()
        run.mark(stage, "done")
    return run


def write_evaluation(run: Run, evaluation: dict[str, Any]) -> None:
    run.file("evaluation.json").write_text(json.dumps(evaluation))  # half surrogates too, escaped


def rows_in(spec: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    """The rows that a layer of a Vega-Lite specification draws."""
    data = spec["layer"][layer].get("data") or spec["data"]
    rows: list[dict[str, Any]] = data["values"] if "values" in data else spec["datasets"][data["name"]]
    return rows


def hostile_run(path):
    """Every text that comes from a model, a topic or a file is hostile."""
    probes = [
        open_probe(
            "p",
            [f"Hogwarts {HOSTILE}"],
            [HOSTILE],
            "Hogwarts",
            entity=HOSTILE,
            question=HOSTILE,
            answer=HOSTILE,
            form=HOSTILE,
        ),
        copy.deepcopy(USUAL[2]),
    ]
    probes[0]["adapter"]["labels"] = [HOSTILE]
    probes[1] |= {"choices": [HOSTILE, "b"], "answer": HOSTILE}
    probes[1]["base"]["chosen"] = HOSTILE
    evaluation = evaluation_of(*probes)
    evaluation["verdict"] = {"name": HOSTILE, "reason": HOSTILE, "notes": [HOSTILE]}
    evaluation["nearest_training_question"] |= {"probe": HOSTILE, "question": HOSTILE}
    for whose in ("base", "adapter"):
        evaluation[whose] |= {f"topic/{HOSTILE}": 0.5, f"membership/{HOSTILE}": 0.5}
    run = evaluated_run(path, evaluation)
    rows = [
        {"name": HOSTILE, "group": HOSTILE, "leak": 0.5, "choice": 0.5, "neighbours": 0.5, "control": None}
    ]
    run.file("audit.json").write_text(json.dumps({"rows": rows, "text": HOSTILE}))
    run.manifest.topic = HOSTILE
    run.manifest.model = ModelIdentity(name=HOSTILE, revision=HOSTILE, sha256=HOSTILE)
    run.manifest.device = HOSTILE
    run.file("manifest.json").write_text(json.dumps(run.manifest.as_row()))
    return open_run(path)
