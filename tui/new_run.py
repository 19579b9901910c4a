"""What a new run is asked for: topic, model, preset, and every setting for who wants to."""

import asyncio
from importlib import import_module
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.css.query import NoMatches
from textual.widgets import Button, Collapsible, Input, Label, Select, Static

from tui.command import run_command
from tui.dialogs import Choice, Dialog
from tui.line_input import LineInput
from tui.text import gigabytes, shown
from unlearn_mlx.config import PRESETS, BadSetting, Settings, make_settings
from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.run import Run, free_path
from unlearn_mlx.session.catalog import Entry, run_entry
from unlearn_mlx.session.create import new_run
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import checked_name, shipped_topics

OWN = "another: a hub id or a folder"


class NewRun(Dialog[Entry | None]):
    """Makes a run's directory; starting it is the asker's part."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "make", "Start", priority=True),
        Binding("escape", "leave", "Back"),
    ]

    def body(self) -> ComposeResult:
        """A form that fits on 24 lines; the settings fold out."""
        settings = make_settings()
        with Vertical(classes="dialog", id="new-run"):
            yield Label("A new run: what is to be forgotten?")
            with Horizontal(classes="field"):
                yield Label("topic")
                yield LineInput(placeholder=f"such as {_examples()}", id="topic", compact=True)
            with Horizontal(classes="field"):
                yield Label("model")
                yield Select([], id="model", allow_blank=True, prompt="looking ...", compact=True)
            with Horizontal(classes="field", id="own-model-field"):
                yield Label("")
                yield LineInput(placeholder="owner/name or a folder", id="own-model", compact=True)
            with Horizontal(classes="field"):
                yield Label("preset")
                presets = [(_preset_line(name), name) for name in PRESETS]
                yield Select(presets, id="preset", value="standard", allow_blank=False, compact=True)
            yield Static(id="machine", classes="hint")
            yield Static(id="plan", classes="hint")
            folded = Collapsible(title="every setting (empty: the preset's)", id="advanced")
            with folded, VerticalScroll(can_focus=False):
                for name, field in Settings.model_fields.items():
                    with Horizontal(classes="field setting"):
                        yield Label(_label(name))
                        yield LineInput(
                            placeholder=str(getattr(settings, name)), id=f"set-{name}", compact=True
                        )
                        yield Static(shown(field.description or ""), classes="hint")
            yield Static(id="complaint")
            with Horizontal(classes="buttons"):
                yield Button("Start (ctrl+s)", id="start", compact=True)
                yield Button("Back (escape)", id="back", compact=True)

    def on_mount(self) -> None:
        """Look at the machine: that imports mlx, so not in the screen's thread."""
        for name in ("#own-model-field", "#complaint"):
            self.query_one(name).display = False
        self.query_one("#topic").focus()
        self.run_worker(self._look_at_machine())

    async def _look_at_machine(self) -> None:
        options, default, told = await asyncio.to_thread(_models)
        select: Select[str] = self.query_one("#model", Select)
        select.set_options([*options, (Content(OWN), OWN)])
        select.value = default
        self.query_one("#machine", Static).update(Content(told))

    def on_select_changed(self, event: Select.Changed) -> None:
        """Show what the choice brings."""
        if event.select.id == "model":
            self.query_one("#own-model-field").display = event.value == OWN
        elif event.select.id == "preset":
            settings = make_settings(str(event.value))
            for name in Settings.model_fields:
                self.query_one(f"#set-{name}", Input).placeholder = str(getattr(settings, name))
        self._plan()

    @on(Collapsible.Toggled)
    def unfold(self, event: Collapsible.Toggled) -> None:
        """The settings scroll in the room that the rest of the form leaves."""
        self.query_one("#new-run").set_class(not event.collapsible.collapsed, "unfolded")

    def on_input_changed(self, event: Input.Changed) -> None:
        """A setting, or a model of one's own, is another run to plan."""
        if event.input.id != "topic":
            self._plan()

    @work(exclusive=True, group="plan")
    async def _plan(self) -> None:
        """What the run would take, by the planner, once nothing was typed for a moment."""
        await asyncio.sleep(0.3)
        try:
            preset = str(self.query_one("#preset", Select).value)
            told = await planned(self._model(), preset, self._changes())
        except (UserError, KeyError):
            told = ""  # it is complained of where it is to be started
        except NoMatches:
            return  # the form was left meanwhile
        for line in self.query("#plan").results(Static):
            line.update(shown(told))

    def on_input_submitted(self) -> None:
        """Enter in a field starts."""
        self.action_make()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Start or leave."""
        if event.button.id == "start":
            self.action_make()
        else:
            self.action_leave()

    def action_leave(self) -> None:
        """Make nothing; what was typed is not thrown away without a question."""
        if not any(field.value.strip() for field in self.query(Input)):
            self.dismiss(None)
            return

        def answer(said: str | None) -> None:
            if said == "throw":
                self.dismiss(None)

        answers = {"throw": "Throw it away", "stay": "Go on with it"}
        self.app.push_screen(Choice("The form is filled in. Leave it?", answers), answer)

    def action_make(self) -> None:
        """Make the run; a model that is not here is fetched first."""
        start = self.query_one("#start", Button)
        if not start.disabled:
            start.disabled = True
            self.run_worker(self._make())

    async def _make(self) -> None:
        try:
            name = checked_name(self.query_one("#topic", Input).value)
            changes = self._changes()
            model = self._model()
            self._tell(f"Looking up {model} ...")
            fetching = await asyncio.to_thread(import_module, "tui.fetching")
            if not await asyncio.to_thread(fetching.is_here, model):
                await fetching.fetch(model, self._tell)
            run = await asyncio.to_thread(
                _make_run, name, model, str(self.query_one("#preset", Select).value), changes
            )
        except UserError as error:
            self._complain(error)
            return
        if self.is_attached:
            self.dismiss(run_entry(run.path))

    def _tell(self, text: str) -> None:
        """Say something above the buttons; it takes no line before."""
        line = self.query_one("#complaint", Static)
        line.update(shown(one_line(text), "bold"))
        line.display = True

    def _complain(self, error: UserError) -> None:
        """Say what is wrong, and go to the field where it is."""
        text, field = str(error), "topic"
        if isinstance(error, BadSetting):
            text, field = f"{_label(error.name)} {error.wrong}", f"set-{error.name}"
            self.query_one("#advanced", Collapsible).collapsed = False
        elif not self.query_one("#topic", Input).value.strip():
            text = "topic: it is empty, say what is to be forgotten"
        elif self.query_one("#model", Select).value == OWN:
            field = "own-model"
        self._tell(text)
        self.query_one(f"#{field}").focus()
        self.query_one("#start", Button).disabled = False

    def _model(self) -> str:
        chosen = self.query_one("#model", Select).value
        if chosen == OWN:
            return self.query_one("#own-model", Input).value.strip()
        if not isinstance(chosen, str):
            raise UserError("choose a model")
        return chosen

    def _changes(self) -> dict[str, Any]:
        typed = {name: self.query_one(f"#set-{name}", Input).value for name in Settings.model_fields}
        return {name: value.strip() for name, value in typed.items() if value.strip()}


def _make_run(name: str, model: str, preset: str, changes: dict[str, Any]) -> Run:
    import mlx.core as mx

    try:
        return new_run(name, model, preset, changes, free_path(name)).make()
    finally:
        # A thread that ends with streams of its own makes mlx abort when the process ends.
        mx.clear_streams()


async def planned(model_name: str, preset: str, changes: dict[str, Any]) -> str:
    """What a run would take of this machine, in a line.

    Raises:
        UserError: for a model or setting that cannot be.
    """
    from unlearn_mlx.models.registry import NAMED_MODELS

    fetching = await asyncio.to_thread(import_module, "tui.fetching")
    named, first = NAMED_MODELS.get(model_name), ""
    if not await asyncio.to_thread(fetching.is_here, model_name):
        if named is None:
            return "fetched first"
        first = f"fetched first: {gigabytes(named.download_bytes)}, {named.licence}; "
    changed = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    lines = await run_command(
        "run", "any topic", "--dry-run", "--model", model_name, "--preset", preset, *changed
    )
    facts = dict(line.split(maxsplit=1) for line in lines.splitlines() if " " in line)
    return first + ", ".join([f"takes {facts['memory']}", *([facts["time"]] if "time" in facts else [])])


def _models() -> tuple[list[tuple[Content, str]], str, str]:
    """The named models as options, the default's name, and why it is that one."""
    from unlearn_mlx.compute.device import current_device
    from unlearn_mlx.compute.memory import room_of
    from unlearn_mlx.models.registry import NAMED_MODELS, default_model, memory_plan

    device = current_device()
    default, reason = default_model(device)
    options = []
    for model in NAMED_MODELS.values():
        # How much a run takes is the plan's to say, once, for the preset and the settings that are chosen.
        fits = memory_plan(model, device).memory <= room_of(device)
        more = model.licence if fits else "needs more memory than there is"
        options.append((Content(f"{model.name} ({more})"), model.name))
    return options, default, f"on {device.backend}, usually {default}: {reason}"


def _examples() -> str:
    return ", ".join(slug.replace("-", " ").title() for slug in list(shipped_topics())[:2])


def _label(setting: str) -> str:
    """What a setting is called in the form."""
    return setting.replace("_", " ")


def _preset_line(name: str) -> str:
    settings = make_settings(name)
    return f"{name} ({settings.questions} questions, {settings.epochs:g} epochs)"
