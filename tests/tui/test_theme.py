"""Themes are readable, and the right one is chosen."""

import pytest
import scenes
from textual.color import Color
from textual.theme import Theme

from tui.theme import ANSI, DARK, LIGHT, VARIABLE_DEFAULTS, choose_theme

ROOMY = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def contrast(one: Color, other: Color) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: Color) -> float:
        parts = [part / 255 for part in (colour.r, colour.g, colour.b)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_every_text_colour_has_enough_contrast(theme: Theme) -> None:
    background = Color.parse(theme.background or "")
    colours = {
        name: getattr(theme, name)
        for name in ("foreground", "primary", "secondary", "accent", "success", "warning", "error")
    }
    colours |= {name: theme.variables[name] for name in ("muted", "chart-memory", "chart-gpu")}
    for name, colour in colours.items():
        for ground in (background, Color.parse(theme.surface or ""), Color.parse(theme.variables["cursor-blurred"])):
            assert contrast(ground, Color.parse(colour)) >= 4.5, (name, ground.hex)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_the_numbers_of_the_heat_map_can_be_read_on_every_colour(theme: Theme) -> None:
    for level in range(5):
        ground, text = (Color.parse(theme.variables[f"heat-{level}{part}"]) for part in ("", "-text"))
        assert contrast(ground, text) >= 4.5, level


@pytest.mark.parametrize("theme", [DARK, LIGHT, ANSI])
def test_every_theme_has_our_own_variables(theme: Theme) -> None:
    assert set(VARIABLE_DEFAULTS) <= set(theme.variables)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (ROOMY, "trimtab-dark"),
        (ROOMY | {"COLORFGBG": "0;15"}, "trimtab-light"),
        (ROOMY | {"COLORFGBG": "15;0"}, "trimtab-dark"),
        (ROOMY | {"NO_COLOR": "1"}, "trimtab-ansi"),
        ({"TERM": "linux"}, "trimtab-ansi"),
        ({"TERM": "screen"}, "trimtab-ansi"),
        ({"TERM": "tmux-256color"}, "trimtab-dark"),
        (ROOMY | {"TRIMTAB_THEME": "light"}, "trimtab-light"),
        (ROOMY | {"TRIMTAB_THEME": "nord"}, "nord"),
    ],
)
def test_the_terminal_decides_the_theme(environment: dict[str, str], name: str) -> None:
    assert choose_theme(environment) == name


async def test_no_color_means_no_colour_and_a_cursor_that_is_seen_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = scenes.app_of(scenes.work(), theme=choose_theme())
    async with app.run_test(size=(100, 30)) as pilot:
        for _ in range(500):
            await pilot.pause(0.01)
            if "int8" in scenes.text_of(app):
                break
        segments = [segment for strip in app.screen._compositor.render_strips() for segment in strip]
        styles = [one.style for one in segments if one.style is not None]
        assert all(colour is None or colour.is_default for style in styles for colour in (style.color, style.bgcolor))
        assert any(one.style and one.style.reverse and "baseline" in one.text for one in segments)
