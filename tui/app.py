"""``unlearn tui``: the app that holds the screens, the open run, its worker and the chat's engine."""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual import work
from textual.app import App, ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from tui.actions import actions_of, actions_on
from tui.dialogs import Choice
from tui.section import SECTIONS, Host, Section
from tui.theme import keep_theme, kept_theme
from unlearn_mlx.reporting.terminal import plain
from unlearn_mlx.runs.run import STAGES
from unlearn_mlx.session.catalog import Entry, entry_at, run_entries, shipped_entries
from unlearn_mlx.session.chat_engine import ChatEngine
from unlearn_mlx.session.endings import Ending
from unlearn_mlx.session.processes import Workers
from unlearn_mlx.session.progress import Progress
from unlearn_mlx.text.printable import one_line

TICK = 0.25  # seconds between two looks at the events
LOOK_AROUND = 2.0  # seconds between two looks for other runs and workers


def _screen(name: str) -> Callable[[], Screen[Any]]:
    """Makes a screen when it is first gone to: its imports are not paid before."""

    return lambda: screen_class(name)()


def screen_class(name: str) -> type[Section]:
    """A screen's class, imported when it is first asked for."""
    found: type[Section] = getattr(import_module(f"tui.{name}_screen"), f"{name.capitalize()}Screen")
    return found


class UnlearnApp(App[None]):
    """The app."""

    TITLE = "unlearn"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {name: _screen(name) for name in SECTIONS}
    DEFAULT_MODE = "home"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(f"{number},f{number}", f"show('{name}')", title, show=False)
            for number, (name, title) in enumerate(SECTIONS.items(), start=1)
        ),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("ctrl+p", "command_palette", "More", priority=True),
    ]

    def __init__(self, run: Path | None = None) -> None:
        """``run``, a run's directory or a shipped adapter's, is opened at once."""
        super().__init__()
        self.entries: list[Entry] | None = None  # None until they have been looked for
        self.entry = entry_at(run) if run else None
        self.progress = Progress(self.entry.path) if self.entry and self.entry.run else None
        self.pipelines = Workers()
        self.chat_engine = ChatEngine()
        self._looking = False
        if (theme := kept_theme()) in self.available_themes:
            self.theme = theme

    def on_mount(self) -> None:
        """Begin to look at events and for runs."""
        self.set_interval(TICK, self._tick)
        self.set_interval(LOOK_AROUND, self.look_around)
        self.look_around()
        self.call_after_refresh(settle)
        self.theme_changed_signal.subscribe(self, lambda theme: keep_theme(theme.name))

    # What is open

    def open(self, entry: Entry) -> None:
        """Open a run or a shipped adapter; every screen shows it from now on."""
        if self.entry is None or self.entry.path != entry.path:
            self.progress = Progress(entry.path) if entry.run else None
        self.entry = entry
        if self.progress:
            self.progress.update()
        if screen := self._section():
            screen.show_entry()

    @property
    def message(self) -> str:
        """How the open run's worker ended; empty while it works, or where this app did not start it."""
        ending = self.pipelines.ending(self.entry.path) if self.entry else None
        return ending.text if ending else ""

    def state_of(self, entry: Entry) -> str:
        """How far an entry is, and whether anybody works on it."""
        if self.pipelines.is_paused(entry.path):
            return "paused"
        if self.is_stopping(entry.path):
            return "stopping"
        return entry.state(self.is_working(entry.path))

    def is_working(self, path: Path) -> bool:
        """Whether a process works on a run."""
        return self.pipelines.is_working(path)

    def is_stopping(self, path: Path) -> bool:
        """Whether a run's worker was asked to stop and still works."""
        return self.pipelines.is_stopping(path)

    # Looking

    def look_around(self) -> None:
        """Look for runs and workers, aside from the screen's thread."""
        if not self._looking:
            self._looking = True
            self._look_around()

    @work(exit_on_error=False)
    async def _look_around(self) -> None:
        try:
            entries = await asyncio.to_thread(self._look)
        finally:
            self._looking = False
        changed = entries != self.entries
        self.entries = entries
        for entry in entries:
            if self.entry and entry.path == self.entry.path and entry != self.entry:
                self.entry = entry
        if screen := self._section():
            screen.show_opened()
            if changed and screen.section == "home":
                screen.opened()

    def _look(self) -> list[Entry]:
        self.pipelines.find()
        runs = sorted(run_entries(), key=lambda entry: entry.changed, reverse=True)
        return [*runs, *shipped_entries()]

    def _tick(self) -> None:
        if self.progress and self.entry:
            was_running = self.progress.running
            if self.progress.update() and was_running != self.progress.running:
                self.look_around()
        for path, ending in self.pipelines.new_endings().items():
            self._tell_end(path, ending)
        if screen := self._section():
            screen.tick()

    def _section(self) -> Section | None:
        """The screen that is up, where it is one of the six and no dialog is over it."""
        if not self.is_running:  # the timers outlive the widgets when the app ends
            return None
        try:
            screen = self.screen
        except ScreenStackError:
            return None
        return screen if isinstance(screen, Section) and screen.is_built else None

    def _tell_end(self, path: Path, ending: Ending) -> None:
        """Say how a worker ended, and why where it did not just finish."""
        if self.progress and self.entry and self.entry.path.resolve() == path:
            self.progress.update()
        name = next((entry.name for entry in self.entries or [] if entry.path.resolve() == path), path.name)
        severity: Literal["error", "information"] = "error" if ending.is_bad else "information"
        self.notify(f"{one_line(name)}: {ending.text}", severity=severity, markup=False)
        self.look_around()

    # Working

    def start(self, stages: Iterable[str] = STAGES) -> None:
        """Start a worker on the open run, or let it go on where it stopped."""
        if self.entry is None or self.entry.run is None:
            self.notify("Open a run first.", severity="warning")
        elif self.is_working(self.entry.path):
            self.notify("This run is being worked on already.")
        else:
            self.pipelines.start(self.entry.path, list(stages))
            self.refresh_opened()

    def stop(self) -> None:
        """Stop the open run's worker at the next safe point; a second time, at once."""
        if self.entry is None or not self.is_working(self.entry.path):
            self.notify("Nothing is at work on this run.")
            return
        again = self.is_stopping(self.entry.path)
        self.pipelines.stop(self.entry.path, at_once=again)
        self.notify(
            "Ended at once: what the last checkpoint holds is kept."
            if again
            else "Stopping at the next safe point ... once more ends it at once."
        )
        self.refresh_opened()

    def pause(self) -> None:
        """Let the open run's worker stand still, or go on."""
        if self.entry and self.is_working(self.entry.path):
            self.pipelines.pause(self.entry.path)
            self.refresh_opened()
        else:
            self.notify("Nothing is at work on this run.")

    def refresh_opened(self) -> None:
        """Show a state that has just changed."""
        if screen := self._section():
            screen.show_opened()
            screen.tick()

    # Actions

    async def action_show(self, section: str) -> None:
        """Go to a screen."""
        if len(self.screen_stack) == 1:  # not out of a dialog
            await self.switch_mode(section)

    def action_help(self) -> None:
        """What this screen is for, and its keys."""
        from tui.help import Help  # Markdown takes long to import

        if isinstance(self.screen, Help):
            self.screen.dismiss()
        else:
            self.push_screen(Help(self.screen.HELP or "", actions_of(self.screen)))

    async def action_quit(self) -> None:
        """Leave; where a run is at work, ask what becomes of it."""
        if isinstance(self.screen, Choice):
            return
        working = self.pipelines.own_running()
        if not working:
            await self._leave()
            return
        names = ", ".join(folder.name for folder in working)
        self.push_screen(
            Choice(
                f"Still at work: {one_line(names)}. What becomes of it?",
                {
                    "stop": "Stop it at the next safe point, then quit",
                    "go_on": "Quit and let it go on; 'unlearn tui' finds it again",
                    "stay": "Stay",
                },
            ),
            self._quit_as,
        )

    def _quit_as(self, answer: str | None) -> None:
        if answer == "go_on":
            for folder in self.pipelines.own_running():
                if self.pipelines.is_paused(folder):
                    self.pipelines.pause(folder)  # what stands still would never end
            self.run_worker(self._leave())
        elif answer == "stop":
            self.run_worker(self._stop_all_and_leave())

    async def _stop_all_and_leave(self) -> None:
        self.notify("Stopping at the next safe point ...", timeout=60)
        for folder in self.pipelines.own_running():
            self.pipelines.stop(folder)
        while self.pipelines.own_running():
            await asyncio.sleep(TICK)
        await self._leave()

    async def _leave(self) -> None:
        await asyncio.to_thread(self.chat_engine.close)
        going_on = [one_line(path.name) for path in self.pipelines.running()]
        told = f"At work without the app: {', '.join(going_on)}. 'unlearn tui' finds it again."
        self.exit(message=plain(told) if going_on else None)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything that has a key on the screen, what the other screens can do, and the themes."""
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)
        for each in actions_of(screen):
            # To move about in a widget is no command.
            if each.told and each.node in (screen, self):
                yield SystemCommand(
                    each.title,
                    f"{each.keys}: {each.told}",
                    lambda each=each: self.run_action(each.action, each.node),
                )
        here = screen.section if isinstance(screen, Section) else None
        for section, title in SECTIONS.items() if here else ():
            for name, action, told in [] if section == here else actions_on(screen_class(section)):
                yield SystemCommand(f"{title}: {name}", told, partial(self._do_there, section, action))

    async def _do_there(self, section: str, action: str) -> None:
        """Go to a screen and do what it can."""
        await self.action_show(section)
        await self.run_action(action, self.screen)


def settle() -> None:
    """Spare the garbage collector what has come to stay: each pass over it holds up the screen for 100 ms."""
    gc.freeze()
    # The chat's engine runs beside the screen: after a key the screen's turn comes 5 ms later otherwise.
    sys.setswitchinterval(0.001)


if TYPE_CHECKING:
    _host: type[Host] = UnlearnApp  # it is what its screens take it for
