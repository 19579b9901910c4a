"""Gates: a script learns by the exit code whether a run is good enough."""

import pytest

from tests.evaluated import USUAL, as_if_done, evaluated_run, evaluation_of, read_back
from tests.helpers import complaint, unlearn
from tests.runs_with_results import finished_run
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.gate import GATED, Gate, gate_answers, gate_value, parse_gates


@pytest.mark.parametrize(
    ("text", "gates"),
    [
        ("leak<=0.1", [Gate("leak", "<=", 0.1)]),
        (" leak <= 10% , neighbours>=.95", [Gate("leak", "<=", 0.1), Gate("neighbours", ">=", 0.95)]),
        ("choice<1,fluency>0", [Gate("choice", "<", 1.0), Gate("fluency", ">", 0.0)]),
    ],
)
def test_gates_are_read(text, gates):
    assert parse_gates(text) == gates


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "leak",
        "leak=0.1",
        "leak<=",
        "leak<=much",
        "leak<=0.1;",
        "<=0.1",
        "leak<=-1",
        "leak\n<=\x1b[31m",
    ],
)
def test_what_is_no_gate_is_one_line_with_an_example(text):
    with pytest.raises(UserError, match="neighbours>=0.95") as caught:
        parse_gates(text)
    assert str(caught.value).isprintable()


def test_an_unknown_figure_is_answered_with_those_that_are_measured():
    with pytest.raises(UserError) as caught:
        parse_gates("leaks<=0.1")
    assert all(name in str(caught.value) for name in GATED)


def test_the_bounds_hold_or_fail_where_they_say():
    assert Gate("leak", "<=", 0.1).passes(0.1) and not Gate("leak", "<", 0.1).passes(0.1)
    assert Gate("neighbours", ">=", 0.95).passes(0.95) and not Gate("neighbours", ">", 0.95).passes(0.95)


def test_the_values_are_the_adapters_and_what_it_keeps_of_the_base():
    evaluation = read_back(evaluation_of(*USUAL))
    assert gate_value(evaluation, "leak") == 0.25
    assert gate_answers(evaluation, "leak") == "any of 2 answers" and not gate_answers(evaluation, "choice")
    evaluation.adapter["topic/worst case, any of 2"] = 0.75
    assert gate_value(evaluation, "worst") == 0.75
    del evaluation.adapter["topic/worst case, any of 2"]
    assert gate_value(evaluation, "neighbours") == 0.5
    with pytest.raises(UserError, match="no metric for 'cloze': it has leak, choice, neighbours, fluency"):
        gate_value(evaluation, "cloze")


@pytest.fixture
def done(workplace, tmp_path):
    return as_if_done(evaluated_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("gate", "code"),
    [("leak<=0.25,neighbours>=50%", 0), ("leak<=0.1,neighbours>=0.5", 1), ("leak<=0.3,neighbours>=0.95", 1)],
)
def test_the_exit_code_says_whether_all_hold(done, gate, code, capsys):
    assert main(["evaluate", str(done.path), "--gate", gate]) == code
    error = capsys.readouterr().err
    assert "in any of 2 answers, " in error
    assert "gate leak<=" in error and "gate neighbours>=" in error
    assert ("FAILS" in error) == bool(code)


def test_a_bad_gate_is_refused_before_anything_is_done(workplace):
    result = unlearn("evaluate", "no-such-run", "--gate", "leak")
    assert result.returncode == 2
    assert "--gate" in complaint(result.stderr)


def test_evaluating_writes_the_report_and_holds_the_gates(tmp_path, tiny_folder):
    run = finished_run(tmp_path / "run", tiny_folder)
    result = unlearn("evaluate", run.path, "--again", "--json", "--gate", "leak<0")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("{") and "gate leak<0" in result.stderr
    assert "Content-Security-Policy" in run.file("report.html").read_text()
