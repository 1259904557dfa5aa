"""Where the time of one variant goes, operator by operator: what `w` shows for the baseline, made from nothing.

What is shown comes from the snapshot; without a profile the engine is asked for one, and it appears when its job ended.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import Failed, MeasureVariant, Profile, Snapshot, Variant

from .. import figures
from ..comparison import measured, variant_named
from ..lines import Line
from ..table import LineTable, Row
from ..text import clean
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp


class ProfileScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,w", "dismiss", show=False),
        Binding("r", "ask", show=False),
    ]

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._variant = variant
        self._asked = False

    def compose(self) -> ComposeResult:
        yield Static(id="profile-title")
        yield Static(id="profile-text")
        yield LineTable(id="operators")
        yield Static("r measures again   esc back", id="profile-keys")

    def on_mount(self) -> None:
        self.query_one(LineTable).focus()
        app = cast("TrimtabApp", self.app)
        self.call_after_refresh(lambda: self.show(app.connection.snapshot, app.view()))

    def show(self, snapshot: Snapshot, view: View) -> None:
        variant = variant_named(snapshot, self._variant.id) or self._variant
        title = Content.assemble((" Where the time goes: ", "$secondary"), (clean(variant.name, 40), "bold"))
        self.query_one("#profile-title", Static).update(title)
        found = profile_of(snapshot, variant.id)
        if found is None and not self._asked and view.link == "connected":
            self.action_ask()
        self.query_one("#profile-text", Static).update(_told(found) if found else self._waiting(snapshot, variant))
        self.query_one(LineTable).set_rows(rows(found) if found else [], [HEADING] if found else [])

    def _waiting(self, snapshot: Snapshot, variant: Variant) -> Content:
        mine = (job for job in reversed(snapshot.jobs) if job.kind == "profile" and job.variant == variant.id)
        job = next(mine, None)
        if job is not None and job.is_done and isinstance(job.state, Failed):
            return Content.assemble(("Not found out: ", "$error"), clean(job.state.reason, 400), "  (r tries again)")
        message = clean(getattr(job.state, "message", ""), 80) if job is not None and not job.is_done else ""
        return Content.assemble("The variant is being profiled… ", (message, "$muted"))

    def action_ask(self) -> None:
        """Let the engine find it out (again)."""
        self._asked = True
        command = MeasureVariant(request=0, variant=self._variant.id, kinds=("profile",))
        self.run_worker(cast("TrimtabApp", self.app).ask(command), group="profile")


def profile_of(snapshot: Snapshot, variant: str) -> Profile | None:
    """The newest profile."""
    return next((one for one in measured(snapshot.measurements).get(variant, ()) if isinstance(one, Profile)), None)


def _told(found: Profile) -> Content:
    held = found.conditions
    where = clean(f"{held.runtime} {held.device}, batch {found.batch_size}", 80)
    lines = [Content.assemble(clean(found.sentence, 400), ("  " + where, "$muted"))]
    lines.append(Content("The baseline was made from nothing: what others gained over it, w tells on them."))
    lines += [Content.styled(clean(note, 300), "$muted") for note in held.notes]
    return Content("\n").join(lines)


HEADING: Line = ((f"   {'ms':>8}{'share':>8}  {'operator':<40}", "heading"),)


def rows(found: Profile) -> list[Row]:
    """Operators, the slowest first."""
    listed = []
    for number, one in enumerate(found.operators):
        text = f"   {figures.milliseconds(one.time_ms):>8}{figures.percent(one.share):>8}  "
        kind = f"  {clean(one.type, 30)} {one.precision or ''}".rstrip()
        listed.append(Row(str(number), ((text, ""), (clean(one.name, 60), "strong"), (kind, "muted"))))
    around = f"   {figures.milliseconds(found.remainder_ms):>8}{'':>8}  (around them)"
    return [*listed, Row(None, ((around, "muted"),))]
