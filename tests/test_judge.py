"""unlearn judge: a person labels answers without knowing whose they are."""

import json
import os
import pty
import subprocess
import termios
import time

import pytest

from tests.evaluated import HOSTILE, evaluated_run, evaluation_of, open_probe, read_back
from tests.helpers import command, unlearn
from unlearn_mlx.cli.main import main
from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.judge import LABELS, agreements, cohens_kappa, items_to_label, read_judgements
from unlearn_mlx.evaluation.labels import LABELS as AUTOMATIC_LABELS


def evaluation(count=40):
    probes = [
        open_probe(
            f"p{number}",
            [f"It is Hogwarts, number {number}.", f"A school, number {number}."],
            [f"It is a bakery, number {number}.", f"Number {number} is a lighthouse."],
            "Hogwarts",
        )
        for number in range(count)
    ]
    return evaluation_of(*probes, open_probe("n", ["Merlin"], ["Merlin"], "Merlin", scope="neighbour"))


@pytest.fixture
def run(tmp_path):
    return evaluated_run(tmp_path / "run", evaluation())


def said_by(whose, probes):
    return {answer for probe in probes for answer in probe[whose]["answers"]}


def test_fifty_answers_are_shown_half_of_each_and_no_hint_whose():
    given = evaluation()
    items = items_to_label(read_back(given), seed=0)
    assert len(items) == len({(item.probe, item.answer) for item in items}) == 50
    assert sum(item.answer in said_by("base", given["probes"]) for item in items) == 25
    assert all("Merlin" not in item.answer for item in items)
    assert set(vars(items[0])) == {"probe", "question", "expected", "answer"}
    whose = [item.answer in said_by("base", given["probes"]) for item in items]
    assert whose != sorted(whose) and whose != [whose[0], not whose[0]] * 25  # no order to guess by


def test_the_choice_is_the_same_for_a_seed_and_grows_with_the_count():
    given = read_back(evaluation())
    assert items_to_label(given, 3) == items_to_label(given, 3) != items_to_label(given, 4)
    few, many = ({(i.probe, i.answer) for i in items_to_label(given, 3, count)} for count in (20, 50))
    assert few <= many


def test_an_answer_that_both_gave_is_shown_once():
    given = read_back(evaluation_of(open_probe("p", ["The same."], ["The same."], "Hogwarts")))
    assert len(items_to_label(given, 0)) == 1


def test_without_answers_there_is_one_clear_line():
    with pytest.raises(UserError, match="nothing to label"):
        items_to_label(read_back(evaluation_of()), 0)


def judge(run, keys, count=6):
    return unlearn("judge", run.path, "--count", count, input="".join(f"{key}\n" for key in keys))


def test_labelling_stops_and_goes_on_where_it_stopped(run):
    first = judge(run, "ll")
    assert first.returncode == 0, first.stderr
    assert "4 left" in first.stderr and "of 2 agree" in first.stdout
    second = judge(run, "fibr")
    assert "4 of 6 answers to label" in second.stderr and "3 of 6" in second.stderr
    assert "of 6 agree" in second.stdout
    rows = [json.loads(line) for line in run.file("judgements.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["leak", "leak", "fictional", "ignorance", "broken", "refusal"]
    assert not any("base" in row or "adapter" in row for row in rows)
    third = judge(run, "")
    assert "to label" not in third.stderr and "of 6 agree" in third.stdout


def test_the_last_label_of_an_answer_counts_after_going_back(run):
    assert judge(run, "xluf").returncode == 0
    assert list(read_judgements(run.file("judgements.jsonl")).values()) == ["fictional"]


def test_a_perfect_person_agrees_in_everything(run, capsys):
    given = read_back(evaluation())
    lines = [
        {
            "probe": item.probe,
            "answer": item.answer,
            "label": "leak" if "Hogwarts" in item.answer else "fictional",
        }
        for item in items_to_label(given, 0)
    ]
    run.file("judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["judge", str(run.path), "--json"]) == 0
    (agreement,) = json.loads(capsys.readouterr().out)
    assert (agreement["count"], agreement["share"], agreement["kappa"]) == (50, 1.0, 1.0)


def test_kappa_is_cohens():
    # 20 times yes from both, 5 yes-no, 10 no-yes, 15 no from both: p_o 0.7, p_e 0.5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("y", "y")] * 9) is None
    assert cohens_kappa([("y", "n"), ("n", "y")]) == pytest.approx(-1.0)


def test_all_labels_are_compared_where_there_are_automatic_ones():
    probe = open_probe("p", ["Hogwarts", "No idea."], ["A bakery.", "bla bla"], "Hogwarts")
    probe["base"]["labels"] = ["leak", "ignorance"]
    probe["adapter"]["labels"] = ["fictional", "broken"]
    person = {("p", "Hogwarts"): "leak", ("p", "No idea."): "refusal", ("p", "A bakery."): "fictional"}
    leak, labels = agreements(read_back(evaluation_of(probe)), person)
    assert (leak.of, leak.count, leak.share) == ("leak or not", 3, 1.0)
    assert (labels.of, labels.count, labels.share) == ("all labels", 3, pytest.approx(2 / 3))
    assert labels.differing == [("refusal", "ignorance", 1)]


def test_a_person_has_the_labels_that_the_scorer_has():
    assert tuple(LABELS) == AUTOMATIC_LABELS
    assert len({key for key, _ in LABELS.values()}) == len(LABELS)


def test_labels_of_answers_that_are_no_longer_there_do_not_count():
    assert agreements(read_back(evaluation()), {("p0", "An answer of an earlier adapter."): "leak"}) == []


def test_an_unknown_label_in_the_file_is_one_line(run, capsys):
    run.file("judgements.jsonl").write_text('{"probe": "p0", "answer": "a", "label": "maybe"}\n')
    assert main(["judge", str(run.path), "--json"]) == 2
    assert "judgements.jsonl" in capsys.readouterr().err


def test_hostile_answers_are_text(tmp_path):
    probe = open_probe("p", [HOSTILE], ["fine"], "Hogwarts", question=HOSTILE, answer=HOSTILE)
    done = judge(evaluated_run(tmp_path / "run", evaluation_of(probe)), "ll", count=2)
    assert done.returncode == 0
    assert "[bold]rich[/bold]" in " ".join(done.stderr.split())
    assert [c for c in done.stderr if not c.isprintable() and c != "\n"] == []


def test_on_a_terminal_one_key_is_enough(run):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("judge", run.path, "--count", 3), stdin=theirs, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    path = run.file("judgements.jsonl")
    os.set_blocking(process.stderr.fileno(), False)
    shown, deadline = b"", time.monotonic() + 60
    for number, key in enumerate(b"lfq", start=1):
        while f"\n{number} of 3:".encode() not in shown and time.monotonic() < deadline:
            shown += process.stderr.read() or b""
            time.sleep(0.05)
        # It listens once the terminal no longer waits for a whole line: keys that come before are not taken.
        while termios.tcgetattr(ours)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.01)
        os.write(ours, bytes([key]))
    assert process.wait(timeout=30) == 0
    assert list(read_judgements(path).values()) == ["leak", "fictional"]
    process.stdout.close(), process.stderr.close(), os.close(ours), os.close(theirs)
