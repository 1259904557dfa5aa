"""A dialog with one form and one button: export and options. The caller sends; an error stays in the dialog."""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from engine.protocol import Field

from ..form import Form
from ..text import content

Send = Callable[[dict[str, Any]], Awaitable[str | None]]
"""Does it with the form's values; a sentence if it could not be done, None when it is done."""


class FillInScreen(ModalScreen[dict[str, Any] | None]):
    """Ends with the values that were sent, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False),
        Binding("ctrl+s,ctrl+enter", "accept", show=False),
    ]

    def __init__(
        self, title: str, text: Content, fields: tuple[Field, ...], given: dict[str, Any], accept: str, send: Send
    ) -> None:
        super().__init__()
        self._title, self._text, self._fields, self._given = title, text, fields, given
        self._accept, self._send = accept, send

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide", id="choose", can_focus=False) as dialog:
            dialog.border_title = Content(f" {self._title} ")
            yield Static(self._text, classes="hint")
            yield Form(self._fields, self._given, id="form")
            yield Static(id="problem", classes="error")
            with Horizontal(classes="buttons"):
                yield Button(f"{self._accept} (^s)", variant="primary", id="accept")
                yield Button("Back (esc)", id="back")

    def on_mount(self) -> None:
        self.query_one(Form).focus_first()

    @on(Form.Changed)
    def _typed(self) -> None:
        self.query_one("#accept", Button).disabled = bool(self.query_one(Form).errors)

    @on(Button.Pressed, "#back")
    def _back(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#accept")
    @on(Input.Submitted)
    def action_accept(self) -> None:
        if self.query_one("#accept", Button).disabled:
            self.query_one(Form).focus_wrong()
        else:
            self.run_worker(self._do(), group="accept", exclusive=True)

    async def _do(self) -> None:
        values = dict(self.query_one(Form).values)
        problem = await self._send(values)
        if problem is None:
            self.dismiss(values)
        else:
            self.query_one("#problem", Static).update(content(problem))
