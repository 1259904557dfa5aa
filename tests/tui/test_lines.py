"""A repaint covers all that changed: whatever is outside of it was the same before."""

from hypothesis import given
from hypothesis import strategies as st

from tui.lines import Line, changed_cells
from tui.text import clean

SPANS = st.lists(st.tuples(st.text(st.sampled_from("ab │━宽"), max_size=5).map(clean), st.sampled_from(["", "good"])))
LINES = SPANS.map(tuple)


def cells(line: Line) -> list[tuple[str, str]]:
    """The line cell by cell; a wide character stands in both of its cells."""
    found = []
    for text, role in line:
        for character in text:
            found += [(character, role)] * (2 if character == "宽" else 1)
    return found


@given(LINES, LINES)
def test_what_is_not_repainted_did_not_change(before: Line, after: Line) -> None:
    start, width = changed_cells(before, after)
    old, new = cells(before), cells(after)
    longest = max(len(old), len(new))
    old += [(" ", "")] * (longest - len(old))
    new += [(" ", "")] * (longest - len(new))
    outside = [x for x in range(longest) if not start <= x < start + width]
    assert [old[x] for x in outside] == [new[x] for x in outside]


def test_only_the_figure_that_changed_is_repainted() -> None:
    before = (("CPU ", "muted"), (" 38 %", ""), (" mem", "muted"))
    after = (("CPU ", "muted"), (" 41 %", ""), (" mem", "muted"))
    assert changed_cells(before, after) == (4, 5)
