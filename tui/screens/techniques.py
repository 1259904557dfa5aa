"""Choose a technique for a variant, fill in its parameters, apply it: list on the left, the chosen one on the right.

The list has every technique by group. One that cannot be applied is greyed out, and the sentence that says why stands
where its form would be. The form is made from the technique's parameter struct; while the user types, our own limits
answer at once and the engine's checks a moment later. Below it stands the command line that does the same.
The screen sends the command itself, so an engine's refusal is shown here and nothing that was typed is lost.
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
    ApplyTechnique,
    CheckParameters,
    Field,
    GetResults,
    ParametersChecked,
    TechniqueInfo,
    Text,
    Variant,
)

from .. import expectations
from ..connection import NotConnected
from ..form import Form
from ..parameters import command_line
from ..table import LineTable, Row
from ..text import clean, content

if TYPE_CHECKING:
    from ..app import TrimtabApp

CHECK_SECONDS = 0.25
"""After the last keystroke the engine is asked this much later."""

REST_SECONDS = 0.12
"""The form appears when the cursor has rested so long: while it moves, every key is answered at once."""

MEASURED_HERE = 2
"""Variants, the newest, whose figures stand beside what is expected of a technique."""

NAME = Field(name="name", kind="text", description="what the new variant is called", optional=True)
"""The one field every technique has."""


class TechniqueScreen(ModalScreen[bool]):
    """Ends with True when a technique was accepted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", show=False),
        Binding("ctrl+s,ctrl+enter", "apply", show=False),
    ]

    def __init__(
        self,
        techniques: tuple[TechniqueInfo, ...],
        source: Variant,
        chosen: str | None = None,
        given: dict[str, Any] | None = None,
    ) -> None:
        """`chosen` is the technique to begin with, `given` what its form is filled with instead of the defaults."""
        super().__init__()
        self._begin, self._given = chosen, given or {}
        self._techniques = {one.tag: one for one in techniques}
        self._source = source
        self._timer: Timer | None = None
        self._formed = ""
        self._measured: dict[str, list[expectations.Expectation]] = {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide", id="techniques") as dialog:
            dialog.border_title = Content.assemble(" Technique for ", (clean(self._source.name, 40), "bold"), " ")
            with Horizontal():
                yield LineTable(id="technique-list")
                with VerticalScroll(id="technique", can_focus=False):
                    yield Static(id="about")
                    yield Vertical(id="parameters")
            yield Static(id="field-help")
            yield Static(id="command", classes="hint")
            yield Static(id="problem", classes="error")
            with Horizontal(classes="buttons"):
                yield Button("Apply (^s)", variant="primary", id="apply")
                yield Button("Back (esc)", id="back")

    def on_mount(self) -> None:
        rows: list[Row] = []
        groups = dict.fromkeys(one.group for one in self._techniques.values())
        for group in groups:
            rows.append(Row(None, ((clean(group, 40), "heading"),)))
            for one in self._techniques.values():
                if one.group == group:
                    mark, role = ("  ", "") if one.unavailable is None else ("· ", "faint")
                    rows.append(Row(one.tag, ((mark, role), (clean(one.tag, 40), role))))
        table = self.query_one(LineTable)
        table.set_rows(rows)
        first = next((tag for tag, one in self._techniques.items() if one.unavailable is None), None)
        first = self._begin if self._begin in self._techniques else first
        if first is not None:
            table.select(first)
        table.focus()
        self.run_worker(self._fetch_measured(), group="measured")
        if self._begin is not None:
            self.run_worker(self._to_form(), group="form")

    async def _fetch_measured(self) -> None:
        """What each technique brought in this session, to stand beside what is expected of it."""
        reply = await self._trimtab.ask(GetResults(request=0, format="json"), quiet=True)
        for one in expectations.read(reply.text) if isinstance(reply, Text) else []:
            self._measured.setdefault(one.technique, []).append(one)
        if self._measured:
            self._describe()

    @property
    def chosen(self) -> TechniqueInfo | None:
        """The technique under the cursor."""
        return self._techniques.get(self.query_one(LineTable).key or "")

    @on(LineTable.Highlighted)
    def _highlighted(self) -> None:
        """Say at once what the technique does, and make its form when the cursor rests on it."""
        self._describe()
        self.query_one("#apply", Button).disabled = True
        self.query_one("#problem", Static).update("")
        for part in ("#command", "#field-help"):
            self.query_one(part, Static).update("")
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(REST_SECONDS, self._show_form)

    def _describe(self) -> None:
        """What the technique does, what to expect of it, what it brought here, and why it cannot be applied."""
        chosen = self.chosen
        if chosen is None:
            return
        parts = [Content.styled(clean(chosen.title, 80), "bold"), content(chosen.summary)]
        if chosen.expectation:
            parts.append(content(f"Expect: {chosen.expectation}", "$muted"))
        if here := [phrase for one in self._measured.get(chosen.tag, ()) if (phrase := expectations.phrase(one))]:
            parts.append(content(f"Measured here: {'; '.join(here[-MEASURED_HERE:])}", "$muted"))
        if chosen.unavailable is not None:
            parts.append(content(f"Not now: {chosen.unavailable}", "$warning"))
        self.query_one("#about", Static).update(Content("\n").join(parts))

    async def _show_form(self) -> None:
        """The form of the chosen technique, unless it stands there already."""
        chosen = self.chosen
        if chosen is None or chosen.tag == self._formed:
            self._show_command()
            return
        self._formed = chosen.tag
        box = self.query_one("#parameters")
        await box.remove_children()
        if chosen.unavailable is None:
            given = self._trimtab.filled.get((self._source.id, chosen.tag), {})
            given = given | (self._given if chosen.tag == self._begin else {})
            names = {field.name for field in chosen.fields}
            await box.mount(Form((*chosen.fields, NAME), {k: v for k, v in given.items() if k in names}, id="form"))
        self._show_command()

    @on(LineTable.Chosen)
    async def _to_form(self) -> None:
        await self._show_form()
        for form in self.query(Form):
            form.focus_first(self._given if self._formed == self._begin else ())

    @on(Input.Submitted)
    def _to_button(self) -> None:
        """Enter in a field goes to the button, so that Enter twice applies."""
        self.query_one("#apply", Button).focus()

    @on(Form.Explained)
    def _explain_field(self, message: Form.Explained) -> None:
        """Below everything that scrolls: a small terminal would not show it at the form's own end."""
        self.query_one("#field-help", Static).update(content(message.text))

    @on(Form.Changed)
    def _typed(self) -> None:
        self._show_command()
        if self._timer is not None:
            self._timer.stop()
        if not self.query_one(Form).errors:
            self._timer = self.set_timer(CHECK_SECONDS, self._ask_engine)

    def _show_command(self) -> None:
        form = next(iter(self.query(Form)), None)
        chosen = self.chosen
        line = ""
        if chosen is None or chosen.tag != self._formed or (form is not None and form.errors):
            form = None
        if form is not None and chosen is not None:
            values = dict(form.values)
            name = values.pop("name", None)
            line = command_line(chosen.tag, self._source.name, values, form.defaults, name)
        self.query_one("#command", Static).update(content(line))
        valid = form is not None and not form.errors
        self.query_one("#apply", Button).disabled = not valid

    def _ask_engine(self) -> None:
        self.run_worker(self._check(), group="check", exclusive=True)

    async def _check(self) -> None:
        """The engine's opinion of the values; what it says about no field in particular stands below."""
        form, chosen = next(iter(self.query(Form)), None), self.chosen
        if form is None or chosen is None:
            return
        values = {name: value for name, value in form.values.items() if name != "name"}
        reply = await self._trimtab.ask(CheckParameters(request=0, technique=chosen.tag, parameters=values), quiet=True)
        if isinstance(reply, ParametersChecked) and form.is_attached and not form.errors:
            form.show_errors(reply.errors)
            self.query_one("#problem", Static).update(content(reply.errors.get("", "")))
            self.query_one("#apply", Button).disabled = bool(reply.errors)

    @on(Button.Pressed, "#apply")
    def _apply_pressed(self) -> None:
        self.action_apply()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.dismiss(False)

    def action_leave(self) -> None:
        """Esc: from the form to the list, from the list away."""
        table = self.query_one(LineTable)
        if table.has_focus:
            self.dismiss(False)
        else:
            table.focus()

    def action_apply(self) -> None:
        if self.query_one("#apply", Button).disabled:
            for form in self.query(Form):
                form.focus_wrong()
        else:
            self.run_worker(self._send(), group="apply", exclusive=True)

    async def _send(self) -> None:
        from engine.client import EngineError

        form, chosen = self.query_one(Form), self.chosen
        assert chosen is not None
        values = dict(form.values)
        name = values.pop("name", None)
        command = ApplyTechnique(
            request=0, technique=chosen.tag, source=self._source.id, parameters=values, name=name or None
        )
        try:
            await self._trimtab.connection.request(command)
        except (EngineError, NotConnected) as error:
            self.query_one("#problem", Static).update(content(str(error)))
            return
        self._trimtab.filled[self._source.id, chosen.tag] = values
        self.dismiss(True)

    @property
    def _trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)
