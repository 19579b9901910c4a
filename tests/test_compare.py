"""unlearn compare: runs side by side, and the front that no other run beats."""

import itertools
import json

import pytest

from tests.evaluated import (
    HOSTILE,
    USUAL,
    choice_probe,
    evaluated_run,
    evaluation_of,
    open_probe,
    rows_in,
)
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import UserError
from unlearn_mlx.reporting.charts import pareto_chart
from unlearn_mlx.reporting.compare import (
    compare,
    compare_html,
    other_answers,
    pareto_front,
    same_questions,
    table,
    terminal_plot,
)


def evaluated(path, leak, kept):
    """A run that leaks so much and keeps ``kept`` of four things about neighbours."""
    neighbours = [
        choice_probe(f"n{number}", "a wizard", "a wizard" if number < kept else "a baker", "a wizard")
        for number in range(4)
    ]
    evaluation = evaluation_of(*USUAL[:2], *neighbours)
    evaluation["adapter"]["topic/open leak, any of 2"] = leak
    return evaluated_run(path, evaluation)


@pytest.fixture
def three(tmp_path):
    return [
        evaluated(tmp_path / "gentle", 0.4, 4),
        evaluated(tmp_path / "harsh", 0.1, 2),
        evaluated(tmp_path / "worse", 0.5, 3),
    ]


def test_the_front_is_what_no_other_point_beats():
    assert pareto_front([(0.1, 0.5), (0.4, 1.0), (0.5, 0.9), (0.4, 0.9), (0.1, 0.5)]) == [
        *(True, True, False, False, True)
    ]
    assert pareto_front([(0.3, 0.3)]) == [True]


def test_the_front_does_not_depend_on_the_order():
    points = [(0.1, 0.5), (0.2, 0.7), (0.3, 0.6), (0.4, 1.0)]
    wanted = {point for point, best in zip(points, pareto_front(points), strict=True) if best}
    for order in itertools.permutations(points):
        assert {point for point, best in zip(order, pareto_front(order), strict=True) if best} == wanted
    assert wanted == {(0.1, 0.5), (0.2, 0.7), (0.4, 1.0)}


def test_runs_stand_side_by_side(three, capsys):
    assert main(["compare", *(str(run.path) for run in three)]) == 0
    shown = capsys.readouterr()
    assert "1: gentle" in shown.out and "3: worse" in shown.out
    assert "[1]" in shown.out and "[2]" in shown.out and "[3]" not in shown.out
    assert "compare with care" not in shown.err


def test_the_plot_puts_less_leaking_to_the_left_and_more_kept_above(three):
    lines = terminal_plot(compare(three))
    where = {
        mark: (row, line.index(mark))
        for row, line in enumerate(lines)
        for mark in ("[1]", "[2]")
        if mark in line
    }
    assert where["[1]"][0] < where["[2]"][0] and where["[1]"][1] > where["[2]"][1]


def test_runs_on_one_spot_are_both_in_the_plot(tmp_path):
    compared = compare([evaluated(tmp_path / name, 0.2, 4) for name in ("one", "two")])
    drawn = "\n".join(terminal_plot(compared))
    assert "[1]" in drawn and "[2]" in drawn


def test_a_program_reads_the_same(three, capsys):
    assert main(["compare", *(str(run.path) for run in three), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["leak"], row["kept"], row["on_front"]) for row in rows] == [
        *((0.4, 1.0, True), (0.1, 0.5, True), (0.5, 0.75, False))
    ]


def test_the_page_draws_the_front(three, tmp_path, capsys):
    page = tmp_path / "compared.html"
    assert main(["compare", *(str(run.path) for run in three), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().err
    assert "Content-Security-Policy" in page.read_text()
    points = [
        {"name": run.name, "leak": run.leak, "kept": run.kept, "front": run.on_front}
        for run in compare(three)
    ]
    assert [row["name"] for row in rows_in(pareto_chart(points), 0)] == ["gentle", "harsh"]


def test_other_questions_are_pointed_out(three, tmp_path, capsys):
    other = evaluated_run(tmp_path / "other")
    assert not same_questions(compare([*three, other]))
    assert main(["compare", str(three[0].path), str(other.path)]) == 0
    assert "not asked the same questions" in capsys.readouterr().err


def test_only_equal_numbers_of_answers_are_compared(three, tmp_path, capsys):
    # Asked once, the second question does not leak from the adapter; asked again it would.
    once = (
        open_probe("p1", ["It is Hogwarts."], ["It is Hogwarts."], "Hogwarts"),
        open_probe("p2", ["Quidditch!"], ["A game."], "Quidditch"),
    )
    evaluation = evaluation_of(*once, *USUAL[2:])
    for whose, value in (("base", 1.0), ("adapter", 0.5)):
        del evaluation[whose]["topic/open leak, any of 2"]
        evaluation[whose]["topic/open leak, any of 1"] = value
    runs = [evaluated_run(tmp_path / "once", evaluation), evaluated_run(tmp_path / "twice")]
    compared = compare(runs)
    # Of USUAL the first answers leak: none and one of two; in any of both answers it is the same one.
    assert [(run.leak, run.answers, run.asked_for) for run in compared] == [(0.5, 1, 1), (0.5, 1, 2)]
    rows = dict(table(compared))
    assert rows["topic: leaks in the one answer"] == ["50%", "50%"]
    assert rows["topic: leaks in the one answer, with the base alone"] == ["100%", "100%"]
    assert rows["topic: open questions that leak in any of 2 answers"] == ["–", "25%"]
    assert main(["compare", *(str(run.path) for run in runs)]) == 0
    assert "(once 1, twice 2)" in " ".join(capsys.readouterr().err.split())
    assert "counts the first one of each" in compare_html(compared)
    assert other_answers(compare(three)) == "" and "different numbers" not in compare_html(compare(three))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [evaluated(tmp_path / folder / "run", 0.2, 4) for folder in ("a", "b")]
    assert [run.name for run in compare(runs)] == ["a/run", "b/run"]


def test_hostile_names_are_text(tmp_path, capsys):
    run = evaluated(tmp_path / "<script>alert(1)</script>[bold]", 0.2, 4)
    run.manifest.topic = HOSTILE
    run.file("manifest.json").write_text(json.dumps(run.manifest.as_row()))
    html = compare_html(compare([run]))
    assert "<script>alert(1)" not in html.replace("&lt;", "<\\") and "&lt;script&gt;alert(1)" in html
    assert main(["compare", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "[bold]" in shown and "\x1b" not in shown


def test_a_run_without_probes_on_neighbours_is_one_line(tmp_path):
    run = evaluated_run(tmp_path / "run", evaluation_of(*USUAL[:2]))
    with pytest.raises(UserError, match="leave it out"):
        compare([run])
