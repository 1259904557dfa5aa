"""A checkbox that is empty when it is off. Textual's own always has its X and tells on from off by colour alone."""

from textual.content import Content
from textual.widgets import Checkbox


class Tick(Checkbox):
    """`[X]` or `[ ]`, also without colours."""

    def render(self) -> Content:
        self.BUTTON_INNER = "X" if self.value else " "
        return super().render()
