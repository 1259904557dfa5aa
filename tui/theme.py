"""Colours: a dark and a light theme of our own, one for terminals with 16 colours or none, and which to start with.

Meaning is never in colour alone: every verdict and state also has a symbol and a word. The muted texts keep a
contrast of at least 4.5 : 1 against their background (a test computes it).
"""

import os
from collections.abc import Mapping

from textual.theme import Theme

DARK = Theme(
    name="trimtab-dark",
    primary="#6cb6ff",
    secondary="#8ea0b5",
    accent="#f2c46d",
    success="#7dd69a",
    warning="#f0a95b",
    error="#ff8078",
    foreground="#d6dee8",
    background="#0e1319",
    surface="#151c24",
    panel="#1c2530",
    dark=True,
    variables={
        "muted": "#8c9bab",
        "faint": "#465361",
        "rule": "#2f3b48",
        "cursor": "#24384f",
        "cursor-blurred": "#1b2531",
        "chart-memory": "#b79cf0",
        "chart-gpu": "#5fd0c5",
        "heat-0": "#16281f",
        "heat-1": "#1d4631",
        "heat-2": "#57490f",
        "heat-3": "#7a3f10",
        "heat-4": "#8a2026",
        "heat-0-text": "#9fd9b6",
        "heat-1-text": "#c6f2d5",
        "heat-2-text": "#ffe9a6",
        "heat-3-text": "#ffdcbd",
        "heat-4-text": "#ffdada",
        "border-blurred": "#2f3b48",
        "block-cursor-text-style": "none",
        "input-selection-background": "#6cb6ff 35%",
        "scrollbar": "#2f3b48",
        "scrollbar-hover": "#465361",
        "scrollbar-active": "#6cb6ff",
        "scrollbar-background": "#0e1319",
        "scrollbar-background-hover": "#0e1319",
        "scrollbar-background-active": "#0e1319",
        "scrollbar-corner-color": "#0e1319",
    },
)
"""The default."""

LIGHT = Theme(
    name="trimtab-light",
    primary="#0a5cad",
    secondary="#51606f",
    accent="#8a5a00",
    success="#15702f",
    warning="#985500",
    error="#b81f2c",
    foreground="#1d2631",
    background="#fcfcfa",
    surface="#f1f2f0",
    panel="#e6e9ea",
    dark=False,
    variables={
        "muted": "#56626f",
        "faint": "#a9b2bb",
        "rule": "#c3cad1",
        "cursor": "#cfe3f8",
        "cursor-blurred": "#e6edf3",
        "chart-memory": "#6a3fc0",
        "chart-gpu": "#00756b",
        "heat-0": "#eaf5ec",
        "heat-1": "#c4e8ce",
        "heat-2": "#fae7a4",
        "heat-3": "#f8c291",
        "heat-4": "#eb9a95",
        "heat-0-text": "#1e5631",
        "heat-1-text": "#134a26",
        "heat-2-text": "#574000",
        "heat-3-text": "#552400",
        "heat-4-text": "#4a0008",
        "border-blurred": "#c3cad1",
        "block-cursor-text-style": "none",
        "input-selection-background": "#0a5cad 25%",
        "scrollbar": "#c3cad1",
        "scrollbar-hover": "#a9b2bb",
        "scrollbar-active": "#0a5cad",
        "scrollbar-background": "#fcfcfa",
        "scrollbar-background-hover": "#fcfcfa",
        "scrollbar-background-active": "#fcfcfa",
        "scrollbar-corner-color": "#fcfcfa",
    },
)
"""For light terminals."""

ANSI = Theme(
    name="trimtab-ansi",
    ansi=True,
    primary="ansi_bright_blue",
    secondary="ansi_cyan",
    accent="ansi_yellow",
    success="ansi_green",
    warning="ansi_yellow",
    error="ansi_red",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    dark=True,
    variables={
        "muted": "ansi_default",
        "faint": "ansi_bright_black",
        "rule": "ansi_bright_black",
        "cursor": "ansi_blue",
        "cursor-blurred": "ansi_default",
        "chart-memory": "ansi_magenta",
        "chart-gpu": "ansi_cyan",
        "heat-0": "ansi_default",
        "heat-1": "ansi_default",
        "heat-2": "ansi_default",
        "heat-3": "ansi_default",
        "heat-4": "ansi_default",
        "heat-0-text": "ansi_default",
        "heat-1-text": "ansi_green",
        "heat-2-text": "ansi_yellow",
        "heat-3-text": "ansi_magenta",
        "heat-4-text": "ansi_red",
        "ansi-background": "ansi_black",
        "ansi-foreground": "ansi_white",
        "border-blurred": "ansi_bright_black",
        "block-cursor-foreground": "ansi_black",
        "block-cursor-background": "ansi_white",
        "input-cursor-background": "ansi_black",
        "input-cursor-foreground": "ansi_bright_white",
        "input-cursor-text-style": "none",
        "input-selection-background": "ansi_bright_blue",
        "input-selection-foreground": "ansi_black",
        "screen-selection-background": "ansi_bright_blue",
        "screen-selection-foreground": "ansi_black",
    },
)
"""The terminal's own sixteen colours; also right where NO_COLOR is set."""

THEMES = (DARK, LIGHT, ANSI)
"""Ours, in the order the palette offers them."""

VARIABLE_DEFAULTS = {
    "muted": "$foreground 65%",
    "faint": "$foreground 30%",
    "rule": "$foreground 22%",
    "cursor": "$primary 30%",
    "cursor-blurred": "$foreground 10%",
    "chart-memory": "$secondary",
    "chart-gpu": "$accent",
    "heat-0": "$success 8%",
    "heat-1": "$success 24%",
    "heat-2": "$warning 24%",
    "heat-3": "$warning 42%",
    "heat-4": "$error 45%",
    "heat-0-text": "$foreground",
    "heat-1-text": "$foreground",
    "heat-2-text": "$foreground",
    "heat-3-text": "$foreground",
    "heat-4-text": "$foreground",
}
"""For Textual's own themes, which do not know our variables."""


def choose_theme(environment: Mapping[str, str] = os.environ) -> str:
    """The theme's name for this terminal.

    `TRIMTAB_THEME` wins (dark, light, ansi, or any theme's full name). NO_COLOR and terminals that do not say they
    have 256 colours get the ANSI theme. COLORFGBG (set by several terminals) tells a light background.
    """
    wish = environment.get("TRIMTAB_THEME", "").strip()
    if wish:
        return f"trimtab-{wish}" if wish in ("dark", "light", "ansi") else wish
    if "NO_COLOR" in environment or not _has_many_colours(environment):
        return ANSI.name
    background = environment.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT.name if background in ("7", "15") else DARK.name


def _has_many_colours(environment: Mapping[str, str]) -> bool:
    """The terminal says it has 256 colours or more."""
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return True
    term = environment.get("TERM", "")
    return term.endswith(("256color", "-direct")) or term.startswith(("xterm-kitty", "alacritty", "foot", "wezterm"))
