"""Help, palette, panes, mouse, themes: one can find everything without a manual."""

from driver import dashboard

from tui.actions import ACTIONS
from tui.theme import THEMES


async def test_help_lists_every_action_with_its_key_and_reason() -> None:
    async with dashboard(size=(120, 90)) as seen:
        await seen.press("question_mark")
        await seen.sees(*(action.description for action in ACTIONS))
        await seen.sees("not now: The baseline cannot be deleted")
        await seen.press("escape")
        await seen.sees("1 Variants", "int8")


async def test_the_palette_runs_an_action_by_name() -> None:
    async with dashboard() as seen:
        await seen.press("ctrl+p")
        await seen.type("batch")
        await seen.sees("View: batch")
        await seen.press("enter")
        await seen.sees("batch 1 ")


async def test_the_palette_says_why_an_action_is_not_available() -> None:
    async with dashboard() as seen:
        await seen.press("ctrl+p")
        await seen.type("delete")
        await seen.sees("Not now: The baseline cannot be deleted")


async def test_a_pane_takes_the_focus_then_the_screen_then_gives_it_back() -> None:
    async with dashboard() as seen:
        await seen.press("3")
        assert seen.app.focused is not None
        assert seen.app.focused.id == "hardware"
        await seen.sees("1 Variants", "3 Hardware")
        await seen.press("3")
        await seen.sees_not("1 Variants")
        await seen.sees("3 Hardware", "-120 s")
        await seen.press("4")
        await seen.sees("4 Log", "calibrating on 256 samples")
        await seen.sees_not("3 Hardware")
        await seen.press("escape")
        await seen.sees("1 Variants", "2 Jobs", "3 Hardware", "4 Log")


async def test_a_hidden_log_comes_with_its_key_on_a_small_terminal() -> None:
    async with dashboard(size=(80, 24)) as seen:
        assert "4 Log" not in seen.text
        await seen.press("4")
        await seen.sees("4 Log", "calibrating on 256 samples")


async def test_the_mouse_chooses_opens_and_presses_the_footer() -> None:
    async with dashboard() as seen:
        assert await seen.pilot.click("#variants", offset=(12, 5))
        await seen.until(lambda: seen.app.main.situation().variant.name == "int8", "choosing by mouse")  # type: ignore[union-attr]
        assert await seen.pilot.click("#variants", offset=(12, 5), times=2)
        await seen.sees("baseline → onnx → int8")
        await seen.press("escape")
        x = next(line for line in seen.text.split("\n") if "? help" in line).index("? help")
        assert await seen.pilot.click("#footer", offset=(x, 0))
        await seen.sees("Apply a technique to the chosen variant.")


async def test_t_cycles_through_our_themes() -> None:
    async with dashboard() as seen:
        for theme in (*THEMES[1:], THEMES[0]):
            await seen.press("T")
            assert seen.app.theme == theme.name
            await seen.sees("int8")


async def test_tab_visits_every_pane() -> None:
    async with dashboard() as seen:
        visited = []
        for _ in range(4):
            visited.append(seen.app.focused.id if seen.app.focused else None)
            await seen.press("tab")
        assert set(visited) == {"variants", "jobs", "log", "hardware"}
