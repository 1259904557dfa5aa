"""Open a model: type its path or pick it, name data for an .onnx, and say whether a pickle may be loaded.

A Python model file is code that the user chose to run. A `.pt` looks like data but runs code too when it is loaded,
so it is asked about in so many words, each time.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, DirectoryTree, Input, Static
from textual.widgets.directory_tree import DirEntry
from textual.widgets.tree import TreeNode

from engine.protocol import OpenModel

from ..connection import NotConnected
from ..text import clean, content
from ..tick import Tick

if TYPE_CHECKING:
    from ..app import TrimtabApp

KINDS = (".py", ".onnx", ".pt", ".pth")
"""Suffixes of model files: Python, ONNX graphs, pickled PyTorch modules."""

TRUST = "Loading this file runs the code inside it, with your rights. Only open it if you trust where it came from."


class ModelTree(DirectoryTree):
    """Directories and files that may be models; names are cleaned before they are drawn."""

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [
            path
            for path in paths
            if not path.name.startswith(".")
            and (path.suffix in KINDS or path.is_dir())
            and path.suffix != ".trimtab"
            and path.name != "__pycache__"
        ]

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:
        mark = ("▾ " if node.is_expanded else "▸ ") if node.allow_expand else "  "
        name = node.data.path.name if node.data is not None else str(node.label)
        return Text(mark + clean(name, 120), style=style)


class OpenScreen(ModalScreen[bool]):
    """Ends with True when the engine has accepted a model."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(False)", show=False)]

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide", id="open") as dialog:
            dialog.border_title = Content(" Open a model ")
            with Horizontal(classes="form-row"):
                yield Static("model", classes="form-label")
                yield Input(placeholder="path of a .py, .onnx or .pt file", id="path", compact=True)
            yield ModelTree(self._directory, id="tree")
            with Vertical(id="data-fields"):
                with Horizontal(classes="form-row"):
                    yield Static("data", classes="form-label")
                    yield Input(placeholder="optional .npz: one array per input, and labels", id="data", compact=True)
                with Horizontal(classes="form-row"):
                    yield Static("calibration", classes="form-label")
                    yield Input(placeholder="optional .npz without labels", id="calibration", compact=True)
            yield Tick(TRUST, id="trust", compact=True)
            yield Tick("measure it at once (latency and accuracy)", value=True, id="measure", compact=True)
            yield Static(id="problem", classes="error")
            with Horizontal(classes="buttons"):
                yield Button("Open", variant="primary", id="accept")
                yield Button("Back (esc)", id="back")

    def on_mount(self) -> None:
        for one in self.query(Input):
            one.cursor_blink = False
        self.query_one("#path", Input).focus()
        self._path_changed()

    @on(DirectoryTree.FileSelected)
    def _picked(self, message: DirectoryTree.FileSelected) -> None:
        self.query_one("#path", Input).value = str(message.path)
        self.query_one("#accept").focus()

    @on(Input.Changed, "#path")
    @on(Checkbox.Changed, "#trust")
    def _path_changed(self) -> None:
        """Show what belongs to the kind of file that is named."""
        path = self._path()
        suffix = path.suffix if path else ""
        pickle = suffix in (".pt", ".pth")
        self.query_one("#data-fields").display = suffix == ".onnx"
        self.query_one("#trust").display = pickle
        problem = ""
        if path is not None and not path.is_file():
            problem = "" if path.is_dir() else "There is no such file."
        elif path is not None and suffix not in KINDS:
            problem = "A model is a .py, an .onnx or a .pt file."
        self.query_one("#problem", Static).update(content(problem))
        trusted = not pickle or self.query_one("#trust", Checkbox).value
        ready = path is not None and path.is_file() and suffix in KINDS and trusted
        self.query_one("#accept", Button).disabled = not ready

    @on(Input.Submitted)
    @on(Button.Pressed, "#accept")
    def _accept(self) -> None:
        if not self.query_one("#accept", Button).disabled:
            self.run_worker(self._send(), group="open", exclusive=True)

    @on(Button.Pressed, "#back")
    def _back(self) -> None:
        self.dismiss(False)

    async def _send(self) -> None:
        from engine.client import EngineError

        path = self._path()
        assert path is not None
        command = OpenModel(
            request=0,
            path=str(path),
            data=self._optional("#data"),
            calibration_data=self._optional("#calibration"),
            trusted=path.suffix in (".pt", ".pth") and self.query_one("#trust", Checkbox).value,
            measure=self.query_one("#measure", Checkbox).value,
        )
        try:
            await cast("TrimtabApp", self.app).connection.request(command)
        except (EngineError, NotConnected) as error:
            self.query_one("#problem", Static).update(content(str(error)))
            return
        self.dismiss(True)

    def _path(self) -> Path | None:
        text = self.query_one("#path", Input).value.strip()
        return Path(text).expanduser().absolute() if text else None

    def _optional(self, selector: str) -> str | None:
        """A path that may be left empty; only an .onnx has such fields."""
        path = self._path()
        text = self.query_one(selector, Input).value.strip()
        return str(Path(text).expanduser().absolute()) if text and path and path.suffix == ".onnx" else None
