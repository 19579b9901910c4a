"""Text of a model, a topic or a file that would be markup, a script or a command is shown as text."""

import json

from tests.evaluated import HOSTILE, evaluated_run, hostile_run
from tests.report_page import Page, page_of
from unlearn_mlx.cli.main import main
from unlearn_mlx.evaluation.records import AuditRow, Metrics
from unlearn_mlx.reporting.charts import audit_chart, change_chart, pareto_chart
from unlearn_mlx.reporting.report import report_html
from unlearn_mlx.text.printable import printable


def test_hostile_text_is_shown_as_text(tmp_path):
    run = evaluated_run(tmp_path / "run")
    html = report_html(hostile_run(tmp_path / "hostile"))
    page = Page(html)
    assert page.text.count("<script>alert(1)</script>") >= 15
    assert "{{ 7 * 7 }}" in page.text and "[bold]rich[/bold]" in page.text and "&amp;" in page.text
    assert set(page.tags) <= set(page_of(run).tags) | {"script", "span", "table", "caption"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert len([1 for kind, _ in page.scripts if kind is None]) == 2
    for kind, text in page.scripts:
        if kind == "application/json":
            json.loads(text)
    ours = html.split("<script>")[0]  # before the library, which may hold what it likes
    assert [c for c in ours if not c.isprintable() and c != "\n"] == []


def test_hostile_text_in_a_chart_is_data(tmp_path):
    rows = [AuditRow(name=HOSTILE, leak=0.5, neighbours=0.5)]
    specs = [
        audit_chart(rows),
        pareto_chart([{"name": HOSTILE, "leak": 0.1, "kept": 1.0, "front": True}]),
    ]
    for spec in specs:
        assert printable(HOSTILE) in json.dumps(spec, ensure_ascii=False).encode().decode().replace(
            '\\"', '"'
        )
    assert change_chart(Metrics(base={}, adapter={})) is None


def test_the_terminal_and_json_show_hostile_text_as_text(tmp_path, capsys):
    run = hostile_run(tmp_path / "hostile")
    capsys.readouterr()
    assert main(["show", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "[bold]rich[/bold]" in " ".join(shown.split())
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    assert main(["show", str(run.path), "--json"]) == 0
    printed = capsys.readouterr().out
    assert [c for c in printed if not c.isprintable() and c != "\n"] == []
    assert json.loads(printed)["verdict"]["reason"] == HOSTILE
