"""The one place where hostile text and paths are made harmless.

Layer names, log lines and file names come from models that strangers made: a name can clear a terminal, write to
its clipboard, become a formula in a spreadsheet, or lead out of a directory. Records keep foreign text raw; every
export goes through here at the last moment (the dashboard has its own `tui/text.py`, which returns Content).

What a caller may rely on: results hold no character that a terminal obeys, are never longer than asked, and the
same input always gives the same output. Nothing here raises for any str, except `inside`, which refuses.
"""

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path

TEXT_LIMIT = 500
"""Characters of foreign text shown where nobody asked for another length."""

FORMULA_STARTS = "=+-@\t\r\n|%＝＋－＠"
"""First characters that a spreadsheet takes for a formula (OWASP's list, with the full-width forms)."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories that are obeyed or hidden instead of drawn: controls, bidi, zero-width, surrogates, breaks."""

_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Letters that are drawn as nothing: invisible as a name, though Unicode calls them letters."""

_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]#|~$!]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown acts on. An underscore inside a word is harmless and stays readable."""


class UnsafePath(ValueError):
    """A path that leads out of its directory, or through a link; the text is a sentence that names it."""


def clean_text(text: str, limit: int = TEXT_LIMIT, *, lines: bool = False) -> str:
    """The text on one line with every control, bidi and zero-width character made visible, cut to `limit`.

    ESC becomes ␛, a newline ␊, U+202E the six characters \\u202e. With `lines` newlines and tabs stay (for logs).
    Text over the limit ends in "…".
    """
    if len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"
    cleaned = "".join(_visible(character, lines) for character in text)
    return cleaned if len(cleaned) <= limit else cleaned[: max(limit - 1, 0)] + "…"


def csv_cell(value: object) -> str:
    """A value as the text of a CSV cell (the csv module adds the quotes): nothing for None, numbers as numbers.

    Text that a spreadsheet would run as a formula gets a leading apostrophe, leading blanks or not.
    """
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    raw = str(value)
    dangerous = raw[:1] in FORMULA_STARTS or raw.lstrip()[:1] in FORMULA_STARTS
    cleaned = clean_text(raw)
    return "'" + cleaned if raw and (dangerous or cleaned.lstrip()[:1] in FORMULA_STARTS) else cleaned


def markdown_cell(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value as Markdown text for one table cell or one line: no markup, HTML, link or cell border survives."""
    if value is None:
        return "–"
    cleaned = clean_text(str(value), limit)
    cleaned = cleaned.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    cleaned = _MARKDOWN_SPECIAL.sub(r"\\\1", cleaned)
    return cleaned.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def markdown_code(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value as inline code. Backticks inside become plain quotes and bars are escaped, so it is safe in a table."""
    cleaned = clean_text(str(value), limit).replace("`", "'").replace("|", "\\|").strip()
    return f"`{cleaned}`" if cleaned else "–"


def file_slug(text: str, limit: int = 60) -> str:
    """A file name for foreign text: ASCII letters, digits, "-", "_" and "."; never empty, hidden, "." or "..".

    Blanks and slashes become "-". Where anything else was lost, a few digits of the text's hash are added; two texts
    may still share a slug ("a b" and "a-b"), so who writes several files tells them apart.
    """
    spaced = re.sub(r"[\s/]+", "-", text)
    slug = re.sub(r"-+", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", spaced)).strip(".-")[:limit].strip(".-")
    if slug == spaced and slug:
        return slug
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{slug[: max(limit - 7, 0)].strip('.-') or 'unnamed'}-{digest}"


def toml_string(text: str) -> str:
    """The text as a TOML basic string, quotes included. It reads back the same, except that lone surrogates,
    which TOML cannot hold, come back as U+FFFD. Invisible characters are written as escapes.
    """
    pieces = []
    for character in text:
        if character in '"\\':
            pieces.append("\\" + character)
        elif unicodedata.category(character) == "Cs":
            pieces.append("\\uFFFD")
        elif _is_invisible(character):
            code = ord(character)
            pieces.append(f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}")
        else:
            pieces.append(character)
    return '"' + "".join(pieces) + '"'


def inside(directory: Path, relative: str | Path) -> Path:
    """`directory / relative`, when that stays inside and passes through no symbolic link below the directory.

    The file need not exist. Raises UnsafePath for an absolute path, "..", NUL, an empty path or a link.
    """
    shown = clean_text(str(relative), 200)
    parts = Path(relative).parts
    if "\0" in str(relative):
        raise UnsafePath(f"The path {shown} contains a NUL character.")
    if not parts or Path(relative).is_absolute():
        raise UnsafePath(f"The path {shown or '(empty)'} is not a relative path.")
    if ".." in parts:
        raise UnsafePath(f"The path {shown} leads out of its directory.")
    place = Path(directory)
    for part in parts:
        place = place / part
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UnsafePath(f"The path {shown} cannot be used: {error.strerror}.") from None
        if stat.S_ISLNK(mode):
            raise UnsafePath(f"The path {shown} passes through a symbolic link.")
    return place


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or character in _BLANK_LETTERS


def _visible(character: str, lines: bool) -> str:
    """The character, or what stands for it when a terminal would obey or hide it."""
    code = ord(character)
    if lines and character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if not _is_invisible(character):
        return character
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
