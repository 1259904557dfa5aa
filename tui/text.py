"""Foreign text on its way to the screen: names of layers and files, log lines, error messages.

A layer may be called `conv[/]x\\x1b]52;c;AAAA\\x07`: Textual would take the brackets for markup and pass the escape
sequence through to the terminal. So every character of foreign text goes through here, and what comes out is either
a plain `str` for the line panes (which never parse markup) or a `Content` (which Textual never parses again).

What a caller may rely on: no result holds a control, format or surrogate character, so its width on the screen is
what `width_of` says; a result is never longer than `limit`. Own sentences may be f-strings; they too come through
`content` or `clean` as soon as they hold a foreign word.
"""

import re

from rich.cells import cell_len, set_cell_size
from textual.content import Content

LIMIT = 400
"""Characters kept of one foreign text unless the caller says otherwise. Cut first, look later: a line may be huge."""

_PLAIN = re.compile(r"[ -~]*")
"""Text that needs no cleaning at all: nearly all of it."""

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
"""Controls (C0, DEL, C1), bidi and zero-width marks, line separators, variation selectors, surrogates, tags."""


def clean(text: object, limit: int = LIMIT) -> str:
    """The text on one line, with each character that a terminal would obey or hide made visible.

    ESC becomes ␛, a newline ␊, U+202E becomes ⟨202e⟩. Text over the limit ends in "…".
    """
    raw = text if isinstance(text, str) else str(text)
    if len(raw) > limit:
        raw = raw[: max(limit - 1, 0)] + "…"
    if _PLAIN.fullmatch(raw):
        return raw
    return _UNSAFE.sub(_visible, raw)


def content(text: object, style: str = "", limit: int = LIMIT) -> Content:
    """Cleaned text as `Content`, which `Static` and the palette may be given. `style` is ours, never foreign."""
    return Content.styled(clean(text, limit), style) if style else Content(clean(text, limit))


def content_lines(text: str, style: str = "", limit: int = 64 * 1024) -> Content:
    """The same for text of several lines (recipes, logs); line breaks stay, tabs become spaces."""
    lines = "\n".join(clean(line.expandtabs(4), 2000) for line in text[:limit].split("\n"))
    return Content.styled(lines, style) if style else Content(lines)


def width_of(text: str) -> int:
    """Cells the cleaned text takes on the screen (wide characters take two)."""
    return len(text) if text.isascii() else cell_len(text)


def fit(text: str, width: int, align: str = "left") -> str:
    """Cleaned text in exactly `width` cells: padded, or cut with an ellipsis."""
    if width <= 0:
        return ""
    taken = width_of(text)
    if taken > width:
        return set_cell_size(text, width - 1) + "…"
    room = " " * (width - taken)
    return room + text if align == "right" else text + room


def wrap(text: str, width: int) -> list[str]:
    """Cleaned text broken at spaces into lines of at most `width` cells; words that are longer are cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while width_of(word) > width > 0:
            if line:
                lines.append(line)
                line = ""
            head = set_cell_size(word, width).rstrip()
            lines.append(head)
            word = word[len(head) :]
        if line and width_of(line) + 1 + width_of(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line] if line or not lines else lines


def _visible(match: re.Match[str]) -> str:
    """A stand-in for one unsafe character."""
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨{code:x}⟩"
