"""Names from a stranger's model harm neither a terminal, a spreadsheet, a Markdown page nor a directory."""

import csv
import io
import tomllib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import safety

HOSTILE = "conv[/]x\x1b]52;c;AAAA\x07"
ANY_TEXT = st.text(st.characters(), max_size=80)


def invisible(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}]


def test_a_terminal_sequence_in_a_layer_name_becomes_visible_text():
    assert safety.clean_text(HOSTILE) == "conv[/]x␛]52;c;AAAA␇"


def test_bidi_and_zero_width_characters_become_visible():
    assert safety.clean_text("a\u202eb\u200bc\x9bd") == "a\\u202eb\\u200bc\\x9bd"


def test_log_text_keeps_its_lines():
    assert safety.clean_text("one\n\ttwo\r\x1b[2J", lines=True) == "one\n\ttwo␍␛[2J"


@given(ANY_TEXT, st.integers(1, 40))
def test_cleaned_text_holds_nothing_invisible_and_keeps_to_its_length(text, limit):
    cleaned = safety.clean_text(text, limit)
    assert not invisible(cleaned)
    assert len(cleaned) <= limit


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-2", "@SUM(A1)", "  =1+1", "\t=1", "\r\n=1", "＝1", "\u200b=1"])
def test_a_formula_in_a_name_is_text_in_a_spreadsheet(name):
    assert safety.csv_cell(name).startswith("'") or safety.csv_cell(name).startswith("\\u")


def test_numbers_stay_numbers_and_unknown_stays_empty_in_csv():
    assert [safety.csv_cell(v) for v in (-0.5, 3, None, "int8")] == ["-0.5", "3", "", "int8"]


@given(ANY_TEXT)
def test_any_text_is_one_cell_of_one_csv_row(text):
    buffer = io.StringIO()
    csv.writer(buffer).writerow([safety.csv_cell(text), "next"])
    assert list(csv.reader(io.StringIO(buffer.getvalue()))) == [[safety.csv_cell(text), "next"]]
    assert buffer.getvalue().count("\n") == 1


@given(ANY_TEXT)
def test_any_text_is_one_cell_of_one_markdown_row(text):
    cell = safety.markdown_cell(text)
    assert "\n" not in cell
    assert "<" not in cell
    assert "|" not in cell.replace("\\\\", "").replace("\\|", "")


def test_markdown_loses_links_html_and_emphasis_but_stays_readable():
    assert safety.markdown_cell("residual_cnn") == "residual_cnn"
    assert safety.markdown_cell("[x](http://a)<img>*b*_c_|d") == ("\\[x\\](http&#58;//a)&lt;img&gt;\\*b\\*\\_c\\_\\|d")
    assert safety.markdown_code("a`|b") == "`a'\\|b`"


@given(ANY_TEXT)
def test_any_text_gives_a_harmless_file_name(text):
    slug = safety.file_slug(text)
    assert slug
    assert slug[0] not in ".-"
    assert set(slug) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert len(slug) <= 60


def test_file_names_stay_readable_and_apart():
    assert safety.file_slug("int8 static/best") == "int8-static-best"
    assert safety.file_slug("../../etc") != safety.file_slug("etc")
    assert safety.file_slug("größe") != safety.file_slug("gräße")


@given(ANY_TEXT)
def test_any_text_reads_back_from_toml(text):
    expected = "".join("\ufffd" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
    written = safety.toml_string(text)
    assert not invisible(written)
    assert tomllib.loads(f"x = {written}")["x"] == expected


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a\0b", "link", "link/x"])
def test_paths_that_leave_their_directory_are_refused(tmp_path, path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    with pytest.raises(safety.UnsafePath):
        safety.inside(home, path)


def test_a_path_inside_is_given_back(tmp_path):
    (tmp_path / "a").mkdir()
    assert safety.inside(tmp_path, "a/b.onnx") == tmp_path / "a" / "b.onnx"
