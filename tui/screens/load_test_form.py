"""Ask for a load test: which load, then the fields that matter for it, then all the others. Enter starts.

    load                 ‹ requests at a rate ›
    rate                 400          Requests a second, whatever becomes of them
    seconds              10           Of sending, …
    …
    trimtab load-test int8 --rate 400

While the user types, our own limits answer at once and the engine's checks a moment later. The screen sends the command
itself, so a refusal is shown here and nothing that was typed is lost.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Button, Input, Static

from engine.protocol import (
    CheckParameters,
    Field,
    LoadSettings,
    ParametersChecked,
    RunAccepted,
    RunLoadTest,
    TechniqueInfo,
    Variant,
)

from ..connection import NotConnected
from ..form import Form
from ..load_form import LOADS, command_line, fields_for, load_of, parameters_of, proposal, settings_of
from ..loads import KIND
from ..text import clean, content
from .techniques import CHECK_SECONDS

if TYPE_CHECKING:
    from ..app import TrimtabApp

LOAD = Field(
    name="load",
    kind="choice",
    choices=LOADS,
    default=LOADS[0],
    description="what is sent; left and right choose",
)
"""The first field decides which others there are."""


class LoadFormScreen(ModalScreen[tuple[str, LoadSettings] | None]):
    """Ends with (the run's id, the settings) of the load test that was accepted, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False),
        Binding("ctrl+s,ctrl+enter,enter", "start", show=False),
    ]

    def __init__(self, info: TechniqueInfo, variant: Variant, before: LoadSettings | None = None) -> None:
        super().__init__()
        self._info, self._variant = info, variant
        self._load = load_of(before) if before is not None else LOADS[0]
        self._values: dict[str, Any] = {}
        if before is not None:
            self._values = {name: getattr(before, name) for name in LoadSettings.__struct_fields__}
        self._timer: Timer | None = None
        self._refused = bool(info.unavailable)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide", id="load-form") as dialog:
            dialog.border_title = Content.assemble(" Load test of ", (clean(self._variant.name, 40), "bold"), " ")
            yield Static(content(self._info.unavailable or self._info.summary), classes="hint", id="load-about")
            with VerticalScroll(id="load-fields", can_focus=False):
                yield Form((LOAD,), {"load": self._load}, id="load-kind")
                yield Vertical(id="load-settings")
            yield Static(id="field-help")
            yield Static(id="command", classes="hint")
            yield Static(id="problem", classes="error")
            with Horizontal(classes="buttons"):
                yield Button("Start (⏎)", variant="primary", id="start", disabled=self._refused)
                yield Button("Back (esc)", id="back")

    async def on_mount(self) -> None:
        await self._show_fields()
        self.query_one("#load-kind", Form).focus_first()

    async def _show_fields(self) -> None:
        """The form of the chosen load; what was typed for another stays where it fits."""
        snapshot = self._trimtab.connection.snapshot
        proposed = proposal(snapshot, self._variant)
        fields = fields_for(self._info.fields, self._load, proposed)
        given = {field.name: self._values[field.name] for field in fields if self._values.get(field.name) is not None}
        box = self.query_one("#load-settings", Vertical)
        await box.remove_children()
        await box.mount(Form(fields, given, id="load-values"))
        self._checked()

    @on(Form.Explained)
    def _explain_field(self, message: Form.Explained) -> None:
        self.query_one("#field-help", Static).update(content(message.text))

    @on(Form.Changed, "#load-kind")
    def _load_chosen(self) -> None:
        self._remember()
        self._load = self.query_one("#load-kind", Form).values["load"]
        self.run_worker(self._show_fields(), group="fields", exclusive=True)

    @on(Form.Changed, "#load-values")
    def _typed(self) -> None:
        self._remember()
        self._checked()

    def _remember(self) -> None:
        """Keep what the user chose: a default of one load is not what another begins with."""
        for form in self.query("#load-values").results(Form):
            defaults = form.defaults
            for name, value in form.values.items():
                if value == defaults[name]:
                    self._values.pop(name, None)
                else:
                    self._values[name] = value

    def _checked(self) -> None:
        """Show the command that says the same, and ask the engine once the user rests."""
        form = self.query_one("#load-values", Form)
        line = "" if form.errors else command_line(clean(self._variant.name, 80), self._load, form.values)
        self.query_one("#command", Static).update(content(line))
        self.query_one("#start", Button).disabled = self._refused or bool(form.errors)
        if self._timer is not None:
            self._timer.stop()
        if not form.errors:
            self._timer = self.set_timer(CHECK_SECONDS, self._ask_engine)

    def _ask_engine(self) -> None:
        self.run_worker(self._check(), group="check", exclusive=True)

    async def _check(self) -> None:
        """The engine's opinion of the values; what it says about no field in particular stands below."""
        form = next(iter(self.query("#load-values").results(Form)), None)
        if form is None:
            return
        parameters = parameters_of(self._load, form.values)
        reply = await self._trimtab.ask(CheckParameters(request=0, technique=KIND, parameters=parameters), quiet=True)
        if isinstance(reply, ParametersChecked) and form.is_attached and not form.errors:
            form.show_errors({name: _short(text) for name, text in reply.errors.items()})
            self.query_one("#problem", Static).update(content(_short(reply.errors.get("", ""))))
            self.query_one("#start", Button).disabled = self._refused or bool(reply.errors)

    @on(Button.Pressed, "#back")
    def _back(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#start")
    @on(Input.Submitted)
    def action_start(self) -> None:
        if self.query_one("#start", Button).disabled:
            for form in self.query("#load-values").results(Form):
                form.focus_wrong()
        else:
            if self._timer is not None:
                self._timer.stop()
            self.workers.cancel_group(self, "check")  # its answer would take away the one to this
            self.run_worker(self._send(), group="start", exclusive=True)

    async def _send(self) -> None:
        from engine.client import EngineError

        form = self.query_one("#load-values", Form)
        try:
            settings = settings_of(self._load, form.values)
            reply = await self._trimtab.connection.request(
                RunLoadTest(request=0, variant=self._variant.id, settings=settings)
            )
        except (EngineError, NotConnected, ValueError) as error:
            self.query_one("#problem", Static).update(content(_short(str(error))))
            return
        if isinstance(reply, RunAccepted):
            self.dismiss((reply.run.id, settings))

    @property
    def _trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)


def _short(text: str) -> str:
    """A sentence without the word for what is being asked: the dialog says so already."""
    start = f"{KIND}: "
    rest = text.removeprefix(start)
    return rest if rest == text else rest[:1].upper() + rest[1:]
