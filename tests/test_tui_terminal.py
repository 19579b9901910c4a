"""The terminal app in a real terminal, on the embedded model, from a new run to the exit code."""

import os
import sys
import time

import pexpect
import psutil
import pyte

ROWS, COLUMNS = 40, 120


class Terminal:
    """A program in a pseudo-terminal, and what stands on its screen."""

    def __init__(self, command, folder):
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = pexpect.spawn(
            command[0], command[1:], cwd=str(folder), env=environment, dimensions=(ROWS, COLUMNS), timeout=5
        )

    def read(self, seconds=0.2):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.stream.feed(self.process.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                return

    @property
    def text(self):
        return "\n".join(self.screen.display)

    def until(self, *wanted, seconds=120):
        """Wait until one of these stands on the screen."""
        end = time.monotonic() + seconds
        while not any(each in self.text for each in wanted):
            assert time.monotonic() < end, f"no {wanted} within {seconds} s:\n{self.text}"
            assert self.process.isalive(), self.text
            self.read()

    def press(self, *keys):
        for key in keys:
            self.process.send(key)
            self.read(0.1)


def workers():
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "unlearn_mlx.pipeline" in (process.info["cmdline"] or [])
        and any("harry-potter" in word for word in process.info["cmdline"])
        and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_from_a_new_run_to_the_exit_code(workplace):
    before = {process.pid for process in workers()}
    terminal = Terminal([sys.executable, "-m", "unlearn_mlx.cli", "tui"], workplace)
    terminal.until("New run")
    terminal.until("comes with the project")

    # A new run with small counts: topic, model and preset as they are, then the settings.
    terminal.press("n")
    terminal.until("what is to be forgotten?")
    terminal.until("smollm2 (needs")
    terminal.press("Harry Potter", "\t", "\t", "\t", "\r")
    terminal.until("questions about the topic")
    for _, value in (
        ("seed", ""),
        ("questions", "8"),
        ("answers", "1"),
        ("rounds", "3"),
        ("neighbours", "4"),
    ):
        terminal.press("\t", *([value] if value else []))
    terminal.press("\x13")  # ctrl+s

    # Watch, cancel, resume.
    terminal.until("at work", seconds=180)
    terminal.until("topic questions", "neighbour questions", "general questions", seconds=180)
    terminal.press("x")
    terminal.until("r goes on", seconds=180)
    terminal.press("r")
    terminal.until("at work", seconds=180)
    terminal.until("guarded answers", "✓ Answers", seconds=240)
    terminal.press("x")
    terminal.until("r goes on", seconds=180)

    # Chat with the adapter that comes with the project, and toggle.
    terminal.press("1")
    terminal.until("comes with the project")
    terminal.press("\x1b[B", "c")
    terminal.until("adapter answers", seconds=180)
    terminal.press("Who is Harry Potter?", "\r")
    terminal.until("tokens/s", "/s", seconds=180)
    terminal.press("\x1b", "\x14")  # escape, ctrl+t
    terminal.until("base answers", "both answers")
    terminal.press("\x11")  # ctrl+q
    terminal.process.expect(pexpect.EOF, timeout=120)
    terminal.process.close()
    assert terminal.process.exitstatus == 0
    assert {process.pid for process in workers()} <= before
