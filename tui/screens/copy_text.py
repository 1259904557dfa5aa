"""Take text out of the dashboard: to the terminal's clipboard, or into a file.

The clipboard is one escape sequence (OSC 52) that no terminal acknowledges, and tmux may swallow it; so the text is
also shown, where it can be selected, and can be written to a file, which always works.
"""

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from ..text import clean, content, content_lines


class CopyScreen(ModalScreen[None]):
    """Shows texts by name ("command line", "recipe"); the last is what a file gets."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]

    def __init__(self, texts: dict[str, str], file_name: str) -> None:
        super().__init__()
        self._texts = texts
        self._file_name = file_name

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide", id="copy") as dialog:
            dialog.border_title = Content(" Copy ")
            with VerticalScroll(id="texts"):
                for name, text in self._texts.items():
                    yield Static(content(name, "bold $primary"))
                    yield Static(content_lines(text), classes="copy-text")
            with Horizontal(classes="form-row"):
                yield Static("file", classes="form-label")
                yield Input(self._file_name, id="file", compact=True)
            yield Static(id="problem", classes="hint")
            with Horizontal(classes="buttons"):
                for number, name in enumerate(self._texts):
                    yield Button(Content(f"Copy {clean(name, 30)}"), variant="primary", id=f"copy-{number}")
                yield Button("Write file", id="write")
                yield Button("Close (esc)", id="close")

    def on_mount(self) -> None:
        self.query_one("#file", Input).cursor_blink = False
        self.query(Button).first().focus()

    @on(Button.Pressed)
    def _pressed(self, message: Button.Pressed) -> None:
        id = message.button.id or ""
        if id == "close":
            self.dismiss()
        elif id == "write":
            self._write()
        else:
            name = list(self._texts)[int(id.removeprefix("copy-"))]
            self.app.copy_to_clipboard(self._texts[name])
            self._tell(f"The {name} was sent to the terminal's clipboard. If it is not there, write the file.")

    @on(Input.Submitted)
    def _write(self) -> None:
        given = self.query_one("#file", Input).value.strip()
        path = Path(given).expanduser().absolute()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(list(self._texts.values())[-1])
        except FileExistsError:
            self._tell(f"{given} exists already; choose another name.")
        except OSError as error:
            self._tell(f"{given} cannot be written: {error.strerror}.")
        else:
            self._tell(f"Written to {path}.")

    def _tell(self, text: str) -> None:
        self.query_one("#problem", Static).update(content(text))
