"""A question with two or three answers; the screen ends with the chosen answer's word, or None for Esc."""

from typing import ClassVar, NamedTuple

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class Answer(NamedTuple):
    """One button: the word it stands for, its label, the key that presses it."""

    word: str
    label: str
    key: str
    dangerous: bool = False


class QuestionScreen(ModalScreen[str | None]):
    """The first answer gets the focus (Textual's AUTO_FOCUS). `text` is Content, so foreign words in it are clean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, text: Content, answers: list[Answer]) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._answers = answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(f" {self._title} ")
            yield Static(self._text)
            with Horizontal(classes="buttons"):
                for answer in self._answers:
                    label = Content.assemble((answer.key, "underline"), " ", answer.label)
                    yield Button(label, variant="error" if answer.dangerous else "primary", id=f"answer-{answer.word}")

    def on_key(self, event: Key) -> None:
        for answer in self._answers:
            if event.key == answer.key:
                event.stop()  # or the screen below, which is there again by then, would take the key as its own
                self.dismiss(answer.word)

    @on(Button.Pressed)
    def _pressed(self, message: Button.Pressed) -> None:
        self.dismiss((message.button.id or "").removeprefix("answer-"))
