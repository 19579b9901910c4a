"""The terminal app in a real terminal, on the embedded model, from a new run to the exit code."""

import re
import sys

import psutil

from benchmarks.terminal import Terminal
from unlearn_mlx.runs.finding import find_run


def test_from_a_new_run_to_the_exit_code(workplace):
    terminal = Terminal([sys.executable, "-m", "unlearn_mlx.cli", "tui"], workplace)
    terminal.until("comes with the project")

    # A new run with small counts: topic, model and preset as they are, then some of the settings.
    terminal.press("n")
    terminal.until("smollm2 (Apache-2.0)")
    terminal.press("Harry Potter", "\t", "\t", "\t", "\r")
    terminal.until("seed of every random choice")
    while terminal.read(0.3):  # the settings fold out
        pass
    terminal.press("\t")  # the seed stays
    for name, value in (("questions", "8"), ("answers", "1"), ("rounds", "6"), ("neighbours", "4")):
        terminal.press("\t", value)
        terminal.until(lambda text, row=rf"{name} +{value} ": re.search(row, text), 20)
    terminal.press("\x13")  # ctrl+s

    # Watch, cancel, resume.
    terminal.until("at work", 240)
    terminal.until(lambda text: re.search(r"[1-9]\d*/\d+ (\w+ questions|drafts)", text), 240)
    terminal.press("x")
    terminal.until("r goes on", 240)
    terminal.press("r")
    terminal.until("at work", 240)
    terminal.until("✓ Questions", 400)
    terminal.press("x")
    terminal.until("r goes on", 240)

    # Chat with the adapter that comes with the project, and toggle in the middle.
    terminal.press("1")
    terminal.until("comes with the project")
    terminal.press("g", "j", "c")  # the line below the run
    terminal.until(lambda text: "adapter answers" in text and "loading" not in text, 240)
    terminal.press("Who is Harry Potter?", "\r")
    terminal.until(lambda text: has_answered(text, "adapter"), 240)
    terminal.press("\x14")  # ctrl+t
    terminal.until("base answers")
    terminal.press("And his friends?", "\r")
    terminal.until(lambda text: re.search(r"base · .*tokens/s", text), 240)
    terminal.press("\x1b")  # escape
    terminal.until(lambda text: has_answered(text, "base"), 60)

    terminal.press("\x11")  # ctrl+q
    assert terminal.exit_code() == 0
    # A worker that outlives the app would still stand in the run's folder.
    there = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(workplace)]
    assert there == [psutil.Process()]  # this test
    run = find_run(str(workplace / "runs" / "harry-potter"))
    assert run.settings.questions == 8
    assert run.stage_is_done("questions")


def has_answered(text, mode):
    headings = [line.rstrip() for line in text.splitlines() if f"{mode} · " in line]
    return any("tokens/s" in heading and not heading.endswith("...") for heading in headings)
