"""report.html as somebody opens it: what it says, what it links, and what it never does."""

import base64
import hashlib
import json
import re
import shlex

import pytest

from benchmarks.browser import chromium, chromium_path
from tests.evaluated import (
    USUAL,
    evaluated_run,
    evaluation_of,
    hostile_run,
    open_probe,
    read_probes_back,
    rows_in,
    write_evaluation,
)
from tests.report_page import page_of
from unlearn_mlx.cli.main import _parser, main
from unlearn_mlx.cli.runs import _new_run
from unlearn_mlx.config import Settings, make_settings
from unlearn_mlx.evaluation.forms import FORMS
from unlearn_mlx.reporting.charts import training_charts
from unlearn_mlx.reporting.report import making_command, report_html, write_report
from unlearn_mlx.reporting.transcripts import heat_map, marked
from unlearn_mlx.runs.run import open_run

AUDIT = {
    "rows": [
        {
            "name": "adapter",
            "group": "plain",
            "leak": 0.25,
            "choice": 0.5,
            "neighbours": 0.9,
            "control": 0.25,
        },
        {"name": "fused, 4 bits", "group": "export", "leak": 0.625, "choice": 0.5, "neighbours": 0.9},
    ],
    "text": "Half came back.",
}


def log(run, step, loss, kind="progress", **more):
    measures = {"forget_loss": loss, "retain_kl": 0.1, **more}
    key = "done" if kind == "progress" else "step"
    run.event("train", kind, **{key: step}, total=20, unit="steps", **measures)


@pytest.fixture
def run(tmp_path):
    return evaluated_run(tmp_path / "run")


@pytest.fixture
def full_run(run):
    """A run with everything that a report can show."""
    for step in (5, 10, 15):
        log(run, step, 3 - step / 10)
    log(run, 15, 1.4, "validation", leak_rate=0.5, best=True)
    log(run, 20, 1.3, "validation", leak_rate=0.25, best=True)
    run.file("audit.json").write_text(json.dumps(AUDIT))
    evaluation = evaluation_of(*USUAL)
    notes = ["only 50% of what the base knows of its neighbours is left"]
    evaluation["verdict"] = {"name": "forgets partly", "reason": "33% is left", "notes": notes}
    evaluation["base"] |= {"membership/min-k": 0.8, "topic/label fictional": 0.2, "topic/rouge": 0.5}
    evaluation["adapter"] |= {"membership/min-k": 0.55, "topic/label fictional": 0.9, "topic/rouge": 0.25}
    intervals = {"base": [0.5, 0.9], "adapter": [0.125, 0.375], "difference": [-0.625, -0.375]}
    evaluation["intervals"] = {"topic/open leak, any of 2": intervals}
    write_evaluation(run, evaluation)
    return run


def test_the_page_loads_nothing_and_runs_only_its_own_two_scripts(full_run):
    page = page_of(full_run)
    assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.values("src")
    assert all(value.startswith("#") for value in page.values("href"))
    policy = next(value for value in page.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'") and "eval" not in policy and "http" not in policy
    running = [text for kind, text in page.scripts if kind is None]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert len(running) == 2
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


def test_without_charts_there_is_no_script_at_all(tmp_path):
    evaluation = evaluation_of(*USUAL)
    evaluation["base"] = evaluation["adapter"] = {"topic/distinct bigrams": 0.9}
    page = page_of(evaluated_run(tmp_path / "run", evaluation))
    assert "script" not in page.tags
    assert "script-src 'none'" in " ".join(page.values("content"))


def test_the_verdict_comes_in_words_and_claims_no_erasure(run, full_run):
    text = " ".join(page_of(full_run).text.split())
    assert "Forgets partly: 33% is left. Only 50% of what" in text
    assert text.index("Forgets partly") < text.index("75% drew out what the base knows")
    assert "with the adapter 25% still do" in text
    assert "of the topic's neighbours, the adapter knows 50: not told apart." in text
    assert "suppressed, not proven erased" in text


def test_the_figures_that_say_most_stand_between_verdict_and_table(full_run):
    text = " ".join(page_of(full_run).text.split())
    figure = text.index("75% → 25% topic: open questions that leak in any of 2 answers −50 points: fell")
    assert text.index("Forgets partly") < figure < text.index("Before and after")


def test_the_table_has_intervals_where_the_evaluation_has_them(full_run, tmp_path):
    assert "75% [50, 90]" in page_of(full_run).text
    assert "leak in any of 2 answers" in page_of(full_run).text and "fell" in page_of(full_run).text
    assert "−50 [−62, −38]" in page_of(full_run).text
    bare = page_of(evaluated_run(tmp_path / "bare")).text
    assert "75%" in bare and "[" not in bare and "intervals" not in bare


def test_the_random_adapter_stands_beside_base_and_adapter(full_run, run):
    assert "random adapter" not in page_of(run).text
    evaluation = json.loads(run.file("evaluation.json").read_text())
    evaluation["control"] = {
        "probes": 16,
        "base": {"topic/choice": 0.8},
        "adapter": {"topic/choice": 0.3},
        "random": {"topic/choice": 0.7},
        "intervals": {"topic/choice": {"random": [0.5, 0.9]}},
    }
    write_evaluation(run, evaluation)
    text = " ".join(page_of(run).text.split())
    assert "Random adapter of the same norm, on 16 of the probes" in text
    assert re.search(r"topic: multiple choice right\s?80%\s?30%\s?70% \[50, 90\]", text)


def test_every_other_figure_is_there_too(full_run):
    text = page_of(full_run).text
    assert "topic: rouge" in text and "−0.25" in text
    assert "min-k" in text and "0.55" in text
    assert 'data-chart="character"' in report_html(full_run)


def test_every_cell_of_the_map_leads_to_what_both_said(run):
    page = page_of(run)
    ids = page.values("id")
    links = [value[1:] for value in page.values("href") if value.startswith("#topic-")]
    assert len(links) == 2 and len(set(ids)) == len(ids)
    assert set(links) <= set(ids)
    html = report_html(run)
    cell = html.split(f'<details id="{links[0]}">')[1].split("</details>")[0]
    # The entity that still leaks comes first, with its leak marked in what the adapter said.
    assert "It is <mark>quidditch</mark>." in cell and "<mark>Quidditch</mark>!" in cell


def test_the_map_counts_probes_by_form_and_entity():
    forms = [
        open_probe(f"p{number}", ["Hogwarts"], [said], "Hogwarts", form=form, entity=entity)
        for number, (said, form, entity) in enumerate(
            [
                ("Hogwarts", "role play", "School"),
                ("a bakery", "role play", "School"),
                ("a bakery", FORMS[0], "School"),
                ("a bakery", FORMS[0], "Castle"),
                ("Hogwarts", "new", "Castle"),
            ]
        )
    ]
    found = heat_map(read_probes_back(*forms), "topic")
    assert found.forms == [FORMS[0], "role play", "new"]
    assert [name for name, _ in found.rows] == ["Castle", "School"]
    counts = {(cell.entity, cell.form): (cell.adapter, cell.base, cell.count) for cell in found.cells}
    assert counts == {
        ("School", "role play"): (1, 2, 2),
        ("School", FORMS[0]): (0, 1, 1),
        ("Castle", FORMS[0]): (0, 1, 1),
        ("Castle", "new"): (1, 1, 1),
    }


def test_elsewhere_the_map_reddens_with_what_was_lost():
    found = heat_map(read_probes_back(*USUAL), "neighbour")
    assert [cell.worse for cell in found.cells] == [0.5]  # one of two that the base knew
    assert [cell.worse for cell in heat_map(read_probes_back(*USUAL), "topic").cells] == [1.0, 0.0]


def test_labels_stand_beside_their_answers(tmp_path):
    probe = open_probe("p", ["Hogwarts"], ["I do not know.", "Go away."], "Hogwarts")
    probe["adapter"]["labels"] = ["ignorance", "refusal"]
    html = report_html(evaluated_run(tmp_path / "run", evaluation_of(probe, *USUAL[2:])))
    assert re.search(r"I do not know\.</bdi> <span class=\"label\">ignorance", html)
    assert re.search(r"Go away\.</bdi> <span class=\"label\">refusal", html)


@pytest.mark.parametrize(
    ("text", "pattern", "hits"),
    [
        ("At HOGWARTS, in hogwarts.", r"\bhogwarts\b", ["HOGWARTS", "hogwarts"]),
        ("Misérables, or Mise\u0301rables", "miserables", ["Misérables", "Misérables"]),
        ("Straße ﬃ offen", "strasse", ["Straße"]),
        ("ﬃx then offix", "ffix", ["ﬃx", "ffix"]),
        ("해리 포터 the boy", "boy", ["boy"]),
        ("nothing here", "x*", []),
        ("", "a", []),
    ],
)
def test_leak_filter_are_marked_where_they_stand(text, pattern, hits):
    pieces = marked(text, [pattern])
    assert [piece for piece, hit in pieces if hit] == hits
    assert "".join(piece for piece, _ in pieces) == text.replace("e\u0301", "é")


def test_the_audit_is_shown_and_its_command_named_where_there_is_none(run, full_run, tmp_path):
    text = page_of(full_run).text
    assert "Half came back." in text and "fused, 4 bits" in text and "62%" in text
    assert "unlearn audit" in page_of(evaluated_run(tmp_path / "bare")).text


def test_training_is_drawn_as_it_went_last(run):
    for step, loss in ((5, 3.0), (10, 2.0), (15, 9.0), (10, 1.5), (15, 1.0)):
        log(run, step, loss)
    log(run, 15, 1.2, "validation", leak_rate=0.5, best=False)
    charts = dict(training_charts(run.events()))
    loss = charts["Loss on the new answers, nats a token"]
    assert [(row["step"], row["value"]) for row in rows_in(loss, 0)] == [(5, 3.0), (10, 1.5), (15, 1.0)]
    assert rows_in(loss, 1) == [{"step": 15, "value": 1.2, "kept": "not kept"}]


def test_how_it_was_made_can_be_checked(full_run):
    text = page_of(full_run).text
    evaluation = full_run.file("evaluation.json").read_bytes()
    assert hashlib.sha256(evaluation).hexdigest() in text
    for fact in ("smollm2", "r1", "ab" * 32, "cpu: here", *full_run.manifest.versions.values()):
        assert fact in text


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("standard", {}), ("quick", {"seed": 7}), ("thorough", {"rank": 16, "learning_rate": 2e-4})],
)
def test_the_command_in_the_report_makes_the_same_settings(tmp_path, preset, changes):
    settings = make_settings(preset, **changes)
    words = shlex.split(making_command("Volcanoes; rm -rf ~", "smollm2", settings.model_dump()))
    words = [*words[1:], "--dry-run", "--out", str(tmp_path / "run")]
    given = _parser(words).parse_args(words)
    wanted = _new_run(given)
    topic, made, model_name = wanted.topic, wanted.settings, wanted.model_name
    assert (topic.name, made, model_name) == ("Volcanoes; rm -rf ~", settings, "smollm2")


def test_settings_of_another_version_do_not_break_the_report(run):
    run.manifest.settings["no_longer_known"] = 3
    run.save_manifest()
    assert "no longer known" in report_html(open_run(run.path))
    assert "no-longer-known" not in making_command("Harry Potter", "smollm2", run.manifest.settings)
    assert "no_longer_known" not in Settings.model_fields


def test_the_same_run_makes_the_same_bytes(full_run):
    assert write_report(full_run).read_bytes() == write_report(full_run).read_bytes()


def test_the_command_writes_the_report_and_says_where(run, capsys):
    assert main(["report", str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.file("report.html"))
    assert "Harry Potter" in run.file("report.html").read_text()
    run.file("evaluation.json").unlink()
    assert main(["report", str(run.path)]) == 2
    assert "unlearn evaluate" in capsys.readouterr().err


def test_where_the_training_questions_are_unknown_no_nearness_is_claimed(run):
    assert "40.0 of 100 alike" in " ".join(page_of(run).text.split())
    evaluation = evaluation_of(*USUAL)
    evaluation["nearest_training_question"] |= {"similarity": 0.0, "question": ""}
    write_evaluation(run, evaluation)
    text = " ".join(page_of(run).text.split())
    assert "alike" not in text and "trained on is not known" in text


@pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine")
def test_a_browser_draws_it_offline_and_runs_nothing_of_the_text(full_run, tmp_path):
    pages = [write_report(full_run), write_report(hostile_run(tmp_path / "hostile"))]
    with chromium() as browser:
        context = browser.new_context(
            color_scheme="dark", viewport={"width": 390, "height": 844}, offline=True
        )
        for path in pages:
            page = context.new_page()
            trouble, requests = [], []
            page.on("console", lambda message, trouble=trouble: trouble.append(message.text))
            page.on("pageerror", lambda error, trouble=trouble: trouble.append(str(error)))
            page.on("dialog", lambda dialog, trouble=trouble: trouble.append(dialog.message))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(path.as_uri())
            drawn = page.locator("[data-chart] svg")
            drawn.first.wait_for()
            assert drawn.count() == page.locator("[data-chart]").count() > 1
            page.locator(".map a").first.click()
            assert page.locator("details:target .probe").first.is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == 390  # a phone scrolls one way
            # Base, adapter and change fit.
            table = page.locator(".wide").first
            assert table.evaluate("table => table.scrollWidth <= table.clientWidth")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
            assert trouble == []
            assert requests == [path.as_uri()]
