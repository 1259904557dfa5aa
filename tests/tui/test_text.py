"""Foreign text becomes harmless, and keeps its width."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.content import Content

from tui.text import clean, content, content_lines, fit, width_of, wrap

HOSTILE = st.text(st.characters(codec=None), max_size=60)


@given(HOSTILE)
def test_no_character_survives_that_a_terminal_obeys_or_hides(text: str) -> None:
    for character in clean(text):
        assert unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
        assert character not in "\u202e\u2066\u200b\ufeff"


@given(HOSTILE, st.integers(1, 30), st.sampled_from(["left", "right"]))
def test_fitted_text_takes_exactly_the_cells_it_was_given(text: str, width: int, align: str) -> None:
    assert cell_len(fit(clean(text), width, align)) == width


def test_an_escape_sequence_stays_readable() -> None:
    assert clean("conv[/]x\x1b]52;c;AAAA\x07") == "conv[/]x␛]52;c;AAAA␇"
    assert clean("a\nb") == "a␊b"
    assert clean("\u202egnp.exe") == "⟨202e⟩gnp.exe"


def test_a_huge_text_is_cut_before_it_is_looked_at() -> None:
    assert clean("x" * 10_000_000, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("text", ["[red]", "[/]", "[@click=app.quit]x[/]", "\\[", "[", "[type=x, v={'a[0]'}]"])
def test_content_is_never_read_as_markup(text: str) -> None:
    assert content(text).plain == text
    assert isinstance(content(text, "bold"), Content)


def test_lines_stay_lines_where_lines_are_wanted() -> None:
    assert content_lines("a\n\tb\x1b").plain == "a\n    b␛"


@given(st.text(st.characters(categories=["L", "Zs", "Nd"]), max_size=80), st.integers(4, 20))
def test_wrapped_lines_fit_and_lose_no_word(text: str, width: int) -> None:
    cleaned = clean(text)
    lines = wrap(cleaned, width)
    assert all(width_of(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(cleaned.split())
