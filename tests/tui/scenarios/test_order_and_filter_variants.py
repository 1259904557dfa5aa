"""Batch size, order and filter change what the comparison shows."""

from driver import dashboard


def order(text: str) -> list[str]:
    """Names of the variants from top to bottom."""
    names = ("baseline", "onnx", "int8-dynamic", "int8", "prune 50 %")
    lines = text.split("\n4 Log")[0].split("2 Jobs")[0].split("\n")[3:]
    found = []
    for line in lines:
        name = next((name for name in names if f" {name} " in line), None)
        if name is not None and "×" in line:
            found.append(name)
    return found


async def test_b_shows_the_next_batch_size() -> None:
    async with dashboard() as seen:
        await seen.sees("batch 8", "9.80")
        await seen.press("b")
        await seen.sees("batch 1", "2.41")
        await seen.press("b")
        await seen.sees("batch 8", "9.80")


async def test_s_orders_by_speed_size_and_drop() -> None:
    async with dashboard() as seen:
        await seen.press("s")
        await seen.sees("by speed")
        assert order(seen.text)[:2] == ["int8", "onnx"]
        await seen.press("s")
        await seen.sees("by size")
        assert order(seen.text)[0] == "int8"
        await seen.press("s", "s")
        await seen.sees_not("by drop")
        assert order(seen.text)[0] == "baseline"


async def test_the_filter_narrows_while_one_types_and_escape_clears_it() -> None:
    async with dashboard() as seen:
        await seen.press("slash")
        await seen.type("dyn")
        await seen.sees("filtered")
        assert order(seen.text) == ["baseline", "onnx", "int8-dynamic"]
        await seen.press("enter")
        assert order(seen.text) == ["baseline", "onnx", "int8-dynamic"]
        await seen.press("escape")
        await seen.sees("prune 50 %")


async def test_a_filter_without_a_match_says_so() -> None:
    async with dashboard() as seen:
        await seen.press("slash")
        await seen.type("zzz")
        await seen.sees("No variant matches the filter.")


async def test_the_cursor_stays_on_its_variant_when_the_order_changes() -> None:
    async with dashboard() as seen:
        await seen.press("j", "j")
        assert seen.app.main.situation().variant.name == "int8"  # type: ignore[union-attr]
        await seen.press("s")
        assert seen.app.main.situation().variant.name == "int8"  # type: ignore[union-attr]
