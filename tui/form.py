"""A form made from `Field`s: one line each with label, input, and its help or what is wrong with it.

    calibration samples  2            ! It must be from 8 to 10000.
    per channel          [X]          One scale for each output channel
    activations          ‹ uint8 ›    Number format of activations. Empty: aut…

    Number format of activations. Empty: automatic.

The last line explains the field that has the focus. It says `Form.Changed` after every keystroke; `values` holds what
parses, `errors` what does not. The engine's own sentences are put beside the fields with `show_errors`.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Static

from engine.protocol import Field

from . import parameters
from .choice import Choice
from .text import clean, content
from .tick import Tick


class Form(Vertical):
    """See the top of this file. `given` replaces the defaults."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
    ]

    class Changed(Message):
        """A value changed."""

        def __init__(self, form: "Form") -> None:
            super().__init__()
            self.form = form

        @property
        def control(self) -> "Form":
            return self.form

    class Explained(Message):
        """Another field has the focus; `text` says what it takes."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(
        self, fields: tuple[Field, ...], given: dict[str, Any] | None = None, *, id: str | None = None
    ) -> None:
        super().__init__(id=id, classes="form")
        self.fields = fields
        self.values: dict[str, Any] = {field.name: field.default for field in fields} | (given or {})
        self.errors: dict[str, str] = {}
        self._wrong: dict[str, str] = {}
        """The sentences that are shown: these errors, or the engine's."""
        self._inputs: dict[int, Field] = {}
        self._hints: dict[str, Static] = {}

    def compose(self) -> ComposeResult:
        for field in self.fields:
            hint = Static(content(parameters.hint(field)), classes="form-hint")
            self._hints[field.name] = hint
            with Horizontal(classes="form-row"):
                yield Static(content(field.name.replace("_", " "), limit=40), classes="form-label")
                yield self._input(field)
                yield hint
        yield Static(classes="form-help")

    @property
    def defaults(self) -> dict[str, Any]:
        """What every field is if nobody touches it."""
        return {field.name: field.default for field in self.fields}

    def show_errors(self, errors: dict[str, str]) -> None:
        """Put these sentences beside their fields, and the help beside the others."""
        self._wrong = errors
        for field in self.fields:
            wrong = errors.get(field.name)
            hint = self._hints[field.name]
            hint.set_class(wrong is not None, "-wrong")
            hint.update(content("! " + wrong) if wrong is not None else content(parameters.hint(field)))
        self._explain(self._inputs.get(id(self.screen.focused)))

    def focus_wrong(self) -> None:
        """Go to the first field with a sentence about it, if there is one: whoever wants to send it is told why not."""
        if wrong := {name for name in self._wrong if name}:
            self.focus_first(wrong)

    def focus_first(self, names: Collection[str] = ()) -> None:
        """Go to the first field, or to the first of these."""
        for widget in self.query("Input, Choice, Checkbox"):
            field = self._inputs.get(id(widget))
            if not names or (field is not None and field.name in names):
                widget.focus()
                self.call_after_refresh(widget.scroll_visible, animate=False)
                return

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Explain the field in full, which its own line may have no room for."""
        self._explain(self._inputs.get(id(event.widget)))

    def _explain(self, field: Field | None) -> None:
        """What is wrong with the field, else what it takes."""
        if field is not None:
            wrong = self._wrong.get(field.name)
            text = "! " + wrong if wrong is not None else parameters.hint(field)
            self.query_one(".form-help", Static).update(content(text))
            self.post_message(self.Explained(text))

    def _input(self, field: Field) -> Widget:
        """The control for one field."""
        value = self.values[field.name]
        widget: Widget
        if field.kind == "boolean":
            widget = Tick("", value=bool(value), compact=True)
        elif field.kind == "choice":
            widget = Choice(field.choices, value, optional=field.optional)
            self.values[field.name] = widget.value
        else:
            empty = clean(field.empty, 16) if field.optional else ""
            widget = Input(parameters.written(field, value), compact=True, placeholder=empty)
            widget.cursor_blink = False
        widget.add_class("form-input")
        widget.set_class(field.kind == "list", "-long")
        self._inputs[id(widget)] = field
        return widget

    @on(Input.Changed)
    @on(Choice.Changed)
    @on(Checkbox.Changed)
    def _changed(self, message: Input.Changed | Choice.Changed | Checkbox.Changed) -> None:
        message.stop()
        field = self._inputs.get(id(message.control))
        if field is None:
            return
        self.errors.pop(field.name, None)
        if isinstance(message, Input.Changed):
            try:
                self.values[field.name] = parameters.parse(field, message.value)
            except ValueError as error:
                self.errors[field.name] = str(error)
        else:
            self.values[field.name] = message.value
        self.show_errors(self.errors)
        self.post_message(self.Changed(self))
