"""A load test on a real engine: started, steered, ended and compared from the dashboard; a cancelled search goes on."""

from pathlib import Path

import pytest
from driver import Dashboard
from test_with_a_real_engine import attached, session  # noqa: F401

from engine.protocol import LoadTest, OpenModel


def finished(seen: Dashboard) -> list[LoadTest]:
    return [one for one in seen.app.connection.snapshot.measurements if isinstance(one, LoadTest)]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_start_turn_knobs_end_and_lay_over(session: Path) -> None:  # noqa: F811
    model = str(session.parent / "tiny.py")
    async with attached(session, OpenModel(request=0, path=model, measure=False)) as seen:
        await seen.sees("● baseline", "Open tiny.py", "✓")
        await seen.press("l")
        await seen.sees("trimtab load-test baseline --rate 100")
        await seen.press("down", "down", *["backspace"] * 4)
        await seen.type("600")
        await seen.sees("--seconds 600")
        await seen.press("enter")
        await seen.sees("measuring", "throughput /s", "rate 100/s")
        await seen.press("greater_than_sign", "b", "W")
        await seen.sees("rate 200/s", "batch 16 B", "wait 20 ms W")  # a tick of the test confirmed each
        await seen.sees("max batch 16", "▲")
        await seen.press("s")
        await seen.until(lambda: finished(seen), "the figures of a test that was ended and kept")
        await seen.sees("p99.9", "the figures mix them")
        assert "with 99 % confidence" in seen.text or "INVALID the load generator" in seen.text  # on a busy machine
        first = finished(seen)[0]
        assert first.settings.rate == 100.0
        assert {mark.text.split()[0] for mark in first.marks} >= {"rate", "max"}

        await seen.press("l")
        await seen.sees("--rate 200", "--max-batch-size 16")
        await seen.press("down", "down", *["backspace"] * 4)
        await seen.type("2")
        await seen.sees("--seconds 2 ")
        await seen.press("enter")
        await seen.until(lambda: len(finished(seen)) == 2, "the second test")
        await seen.sees("p99.9")
        await seen.press("o")
        await seen.sees("Lay over it")
        await seen.press("enter")
        await seen.sees("┅ baseline before", "B/A", "They differ in:")
    async with attached(session) as seen:
        await seen.sees("● baseline")
        await seen.press("enter")
        await seen.sees("Under load")
        await seen.press("l")
        await seen.sees("Load test  baseline  poisson 200/s", "p99.9", "throughput /s")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_cancelled_sweep_keeps_its_tests_and_goes_on(session: Path) -> None:  # noqa: F811
    model = str(session.parent / "tiny.py")
    async with attached(session, OpenModel(request=0, path=model, measure=False)) as seen:
        await seen.sees("● baseline", "Open tiny.py", "✓")
        await seen.press("l")
        await seen.sees("trimtab load-test baseline --rate 100")
        await seen.press("left", "down", "down")
        await seen.sees("sweep batch sizes")
        await seen.type("2")
        await seen.press("down", *["backspace"] * 16)
        await seen.type("1 8")
        await seen.press("down", "down")
        await seen.type("1")
        await seen.sees("--seconds 2 --sweep-batch-sizes 1,8 --sweep-instances 1 --sweep")
        await seen.press("enter")
        await seen.until(lambda: finished(seen), "the first point")
        await seen.press("x")
        await seen.sees("Cancel this load test?")
        await seen.press("x")
        await seen.sees("kept: l and ⏎ go on from there")
        kept = {one.id for one in finished(seen)}
        await seen.press("l")
        await seen.sees("--sweep-batch-sizes 1,8")
        await seen.press("enter")
        await seen.sees("★ recommended")
        assert kept < {one.id for one in finished(seen)}
        assert len(finished(seen)) == 4, "those that had ended were not run again"
