"""Start a load test from the dashboard, turn its knobs, stop it, come back to it, lay another over it."""

from typing import Any

import load_scenes as loads
import msgspec
import pytest
import scenes
from driver import Dashboard, dashboard

from engine.protocol import (
    CancelJob,
    Cancelled,
    JobChanged,
    JobLogged,
    LoadKnobs,
    LoadTicked,
    MeasurementAdded,
    ReadLoad,
    RunChanged,
    RunLoadTest,
    SteerLoad,
)

SIZES = [(80, 24), (100, 30), (200, 50)]

RUNNING = loads.snapshot(jobs=(loads.job(),))
ENDED = loads.snapshot(
    loads.finished(),
    loads.finished("t0", "v1", "j7", age=300, summary=loads.summary(251.0, 15.2)),
    jobs=(loads.job(ended=True), loads.job("j7", "v1", ended=True, created=scenes.NOW - 400)),
)


async def running(seen: Dashboard) -> None:
    """Open the load test that runs."""
    await seen.press("v")
    await seen.sees("measuring", "0:12 of 0:30", "18 s left")


def steering(seen: Dashboard) -> list[SteerLoad]:
    return [one for one in seen.engine.asked if isinstance(one, SteerLoad)]


def confirm(seen: Dashboard, number: int, **knobs: Any) -> None:
    """The next tick, with the knobs where the test has them now."""
    tick = loads.tick(number)
    seen.engine.push(
        LoadTicked(
            seq=0, job="j8", tick=msgspec.structs.replace(tick, knobs=msgspec.structs.replace(tick.knobs, **knobs))
        )
    )


async def test_start_one_and_watch_it() -> None:
    async with dashboard(loads.snapshot(), loads.answers(settings=None)) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("Load test of int8", "requests at a rate", "trimtab load-test int8 --rate 1600")
        await seen.press("down", *["backspace"] * 6)
        await seen.type("400")
        await seen.sees("--rate 400")
        await seen.press("enter")
        command = await seen.asked(RunLoadTest)
        assert (command.variant, command.settings.rate, command.settings.kind) == ("v2", 400.0, "run")
        await seen.sees("about to start")
        seen.engine.push(JobChanged(seq=0, job=loads.job()))
        for number in range(1, 48):
            seen.engine.push(LoadTicked(seq=0, job="j8", tick=loads.tick(number)))
        await seen.sees("Load test  int8  poisson 400/s", "measuring", "p99", "- rate 400/s +")
        assert "achieved" in seen.text


async def test_a_run_that_made_no_job_says_why() -> None:
    async with dashboard(loads.snapshot(), loads.answers(settings=None)) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("--rate 1600")
        await seen.press("enter")
        await seen.sees("about to start")
        accepted = loads.answers()[RunLoadTest].run
        steps = (msgspec.structs.replace(accepted.steps[0], status="refused", reason="tensorrt is not installed."),)
        seen.engine.push(RunChanged(seq=0, run=msgspec.structs.replace(accepted, steps=steps)))
        await seen.sees("⊘ tensorrt is not installed.")


async def test_the_form_shows_the_fields_of_the_load_and_what_the_engine_says_of_them() -> None:
    sentence = "load-test: say more."
    answers = loads.answers() | {scenes.CheckParameters: scenes.ParametersChecked(errors={"": sentence})}
    async with dashboard(loads.snapshot(), answers, size=(100, 40)) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("burst size", "rate", "Say more.")
        await seen.press("left")
        await seen.sees("sweep over batching", "sweep batch sizes", "trimtab load-test int8 --sweep")
        assert "--sweep-" not in seen.text, "what nobody changed is not in the command"
        await seen.sees_not("burst size")
        await seen.press("left")
        await seen.sees("highest rate under a p99 limit", "--slo-p99 16")
        await seen.until(lambda: seen.app.screen.query_one("#start").disabled, "a button that cannot be pressed")


@pytest.mark.parametrize("size", SIZES)
async def test_the_field_one_is_in_is_explained_in_full_however_small_the_terminal(size: tuple[int, int]) -> None:
    async with dashboard(loads.snapshot(), loads.answers(), size=size) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("--rate 1600")
        await seen.press("down")
        await seen.sees("Requests a second, whatever becomes of them (above 0 to 1e+07)")
        await seen.sees("Start (⏎)", "--rate 1600")


async def test_enter_starts_from_any_field() -> None:
    async with dashboard(loads.snapshot(), loads.answers()) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("--rate 1600")
        await seen.press("enter")
        assert (await seen.asked(RunLoadTest)).settings.rate == 1600.0


async def test_a_refusal_stays_in_the_form_with_what_was_typed() -> None:
    async with dashboard(loads.snapshot(), loads.answers() | {RunLoadTest: "load-test: no GPU is free."}) as seen:
        await seen.press("down", "down", "l")
        await seen.sees("--rate 1600")
        await seen.press("ctrl+s")
        await seen.sees("No GPU is free.", "--rate 1600")


@pytest.mark.parametrize("size", SIZES)
async def test_everything_fits(size: tuple[int, int]) -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48)), size=size) as seen:
        await running(seen)
        await seen.sees("throughput /s", "latency ms", "limit 20", "achieved", "batches, 10 s", "max batch 64", "▲")
        assert all(len(line) <= size[0] for line in seen.text.split("\n"))
        assert "esc back" in seen.text.split("\n")[-1]
        assert "space pause" in seen.text.split("\n")[-2]


async def test_charts_without_room_come_up_with_tab() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48)), size=(80, 24)) as seen:
        await running(seen)
        assert "processors" not in seen.text
        await seen.press("tab")
        await seen.sees("processors", "queue")
        assert "throughput" not in seen.text


async def test_a_turned_knob_is_grey_until_a_tick_confirms_it() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("plus")
        await seen.sees("rate 400→440/s")
        await seen.press("plus", "B", "W", "I")
        await seen.sees("rate 400→484/s", "batch 64→128", "wait 10→20 ms", "copies 1→2")
        asked = [one.knobs for one in steering(seen)]
        assert asked == [
            LoadKnobs(rate=440.0),
            LoadKnobs(rate=484.0),
            LoadKnobs(max_batch_size=128),
            LoadKnobs(max_wait_ms=20.0),
            LoadKnobs(instances=2),
        ]
        confirm(seen, 49, rate=484.0, max_batch_size=128, instances=2)
        await seen.sees("rate 484/s", "batch 128", "copies 2", "wait 10→20 ms", "poisson 484/s")


async def test_an_engine_that_refuses_says_why_and_the_knob_goes_back() -> None:
    answers = loads.answers(loads.ticks(48)) | {SteerLoad: "The model takes batches of 8 only."}
    async with dashboard(RUNNING, answers) as seen:
        await running(seen)
        await seen.press("B")
        await seen.sees("The model takes batches of 8 only.", "batch 64 B")


async def test_a_worker_that_refuses_says_so_in_its_log_and_the_knob_goes_back() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("I")
        await seen.sees("copies 1→2")
        line = "03:12:07 Not changed: there is memory for one copy only."
        seen.engine.push(JobLogged(seq=0, job="j8", lines=(line,)))
        await seen.sees("Not changed: there is memory for one copy only.", "copies 1 I")


async def test_pause_and_stop_and_keep() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("space")
        assert steering(seen)[-1].knobs == LoadKnobs(paused=True)
        confirm(seen, 49, paused=True)
        await seen.sees("PAUSED", "space go on")
        await seen.press("space")
        assert steering(seen)[-1].knobs == LoadKnobs(paused=False)
        await seen.press("s")
        await seen.sees("what was measured is kept")
        assert steering(seen)[-1].stop


async def test_cancelling_asks_first() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("x")
        await seen.sees("Cancel this load test?", "Nothing of it is kept")
        await seen.press("x")
        assert (await seen.asked(CancelJob)).job == "j8"


async def test_the_mouse_turns_knobs_and_presses_keys() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        knobs, footer = seen.text.split("\n")[-2:]
        await seen.pilot.click("#load-knobs", offset=(knobs.index("B "), 0))
        await seen.sees("batch 64→128")
        await seen.pilot.click("#load-footer", offset=(footer.index("overlay"), 0))
        await seen.sees("There is no other finished load test yet")


async def test_leaving_and_coming_back_loses_nothing() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("escape")
        await seen.sees("1 Variants")
        confirm(seen, 49, rate=777.0)
        await seen.press("v")
        await seen.sees("rate 777/s", "max batch 64")
        assert sum(isinstance(one, ReadLoad) for one in seen.engine.asked) == 1


async def test_the_end_brings_the_verdict_without_a_key() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        seen.engine.push(MeasurementAdded(seq=0, measurement=loads.finished()))
        seen.engine.push(JobChanged(seq=0, job=loads.job(ended=True)))
        await seen.sees("✓ PASS 398/s, p99 8.92 ms, at most 9.37 with 99 % confidence; limit 20 ms", "p99.9")
        await seen.sees_not("space pause")
        await seen.press("plus")
        await seen.sees("The load test has ended; l starts another.")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"verdict": "FAIL"}, "✗ FAIL"),
        ({"verdict": "UNCLEAR"}, "? UNCLEAR"),
        ({"valid": False, "reasons": ("the load generator fell behind",)}, "✗ INVALID the load generator fell behind"),
    ],
)
async def test_every_verdict_has_its_word(changes: dict[str, Any], expected: str) -> None:
    test = loads.finished(summary=loads.summary(**changes), saturated=changes.get("verdict") == "FAIL")
    async with dashboard(loads.snapshot(test, jobs=(loads.job(ended=True),)), loads.answers(loads.ticks(48))) as seen:
        await seen.press("v")
        await seen.sees(expected)
        assert ("saturated" in seen.text) == test.saturated


async def test_reopened_from_the_jobs_pane_and_from_the_details() -> None:
    async with dashboard(ENDED, loads.answers(loads.ticks(120)), size=(110, 70)) as seen:
        await seen.press("2", "home", "enter")
        await seen.sees("✓ PASS 398/s")
        await seen.press("escape", "1", "home", "down", "down", "enter")
        await seen.sees("Under load", "poisson 400/s: 398/s, p99 8.92 ms (at most 9.37)", "PASS")
        await seen.press("l")
        await seen.sees("✓ PASS 398/s", "throughput /s")


async def test_another_run_is_laid_over_with_both_figures() -> None:
    async with dashboard(ENDED, loads.answers(loads.ticks(120)), size=(110, 34)) as seen:
        await seen.press("down", "down", "v")
        await seen.sees("✓ PASS 398/s")
        await seen.press("o")
        await seen.sees("Lay over it", "onnx", "251")
        await seen.press("enter")
        await seen.sees("with onnx poisson 400/s", "┅ onnx", "━ int8", "B/A", "1.70×", "Same load, same batching.")
        assert {one.job for one in seen.engine.asked if isinstance(one, ReadLoad)} == {"j8", "j7"}
        await seen.press("o", "home", "enter")
        await seen.sees_not("with onnx")


async def test_a_search_shows_its_tests_as_they_end() -> None:
    settings = msgspec.structs.replace(loads.SETTINGS, rate=None)
    history = tuple(msgspec.structs.replace(one, phase="probe 3: 550/s") for one in loads.ticks(48, settings))
    begun = loads.snapshot(*loads.rate_search(ended=False)[:2], jobs=(loads.job(),))
    async with dashboard(begun, loads.answers(history, settings)) as seen:
        await seen.press("v")
        await seen.sees("highest rate with p99 under 20 ms", "probe 3: 550/s", "64 callers", "✗ FAIL")
        seen.engine.push(MeasurementAdded(seq=0, measurement=loads.rate_search()[2]))
        await seen.sees("✓ PASS")
        await seen.press("plus")
        await seen.sees("A search chooses load and batching by itself")
        assert steering(seen) == []
        await seen.press("x")
        await seen.sees("the same search goes on from there")
        await seen.press("escape")
        ended = loads.job(state=Cancelled(started=scenes.NOW - 13, finished=scenes.NOW))
        seen.engine.push(JobChanged(seq=0, job=ended))
        await seen.sees("cancelled; 3 finished tests are kept: l and ⏎ go on from there")


async def test_a_finished_rate_search_says_its_bracket() -> None:
    settings = msgspec.structs.replace(loads.SETTINGS, rate=None)
    scene = loads.snapshot(*loads.rate_search(), jobs=(loads.job(ended=True),))
    async with dashboard(scene, loads.answers(loads.ticks(48), settings), size=(110, 34)) as seen:
        await seen.press("v")
        await seen.sees("550 requests/s keep p99 under 20 ms", "at most 15.8", "3 of 3 seeds", "✗ 620/s does not")
        await seen.sees("p99 ms, over throughput", "limit 20", "capacity")


@pytest.mark.parametrize("size", SIZES)
async def test_a_finished_sweep_draws_its_front_and_names_the_best(size: tuple[int, int]) -> None:
    settings = msgspec.structs.replace(loads.SETTINGS, rate=None, sweep=True)
    scene = loads.snapshot(*loads.sweep(), jobs=(loads.job(ended=True),))
    async with dashboard(scene, loads.answers(loads.ticks(48), settings), size=size) as seen:
        await seen.press("v")
        await seen.sees("★ recommended: batch 16, wait 2 ms, 1 copy: 731/s", "◆ knee", "over throughput", "★ best")
        assert seen.app.screen.query_one("#load-tests").key == "p7", "the recommended one's figures are shown"
        await seen.press("f")
        await seen.sees("throughput /s")


async def test_help_and_palette_know_the_screen() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48)), size=(110, 45)) as seen:
        await running(seen)
        await seen.press("question_mark")
        await seen.sees("Ten percent more requests a second", "End it now and keep what was measured.")
        await seen.press("escape", "ctrl+p")
        await seen.type("stop")
        await seen.sees("Load test: stop & keep")


async def test_another_one_begins_with_the_settings_as_they_stand() -> None:
    async with dashboard(RUNNING, loads.answers(loads.ticks(48))) as seen:
        await running(seen)
        await seen.press("l")
        await seen.sees("Load test of int8", "--max-batch-size 64", "--slo-p99 20")
        await seen.press("ctrl+s")
        command = await seen.asked(RunLoadTest)
        assert command.settings.max_batch_size == 64
        await seen.sees("measuring")
        assert len([one for one in seen.app.screen_stack if one.id is None and hasattr(one, "own_actions")]) == 1


async def test_hostile_words_are_harmless() -> None:
    bad = scenes.HOSTILE
    marks = tuple(msgspec.structs.replace(one, text=bad) for one in loads.ticks(48)[-17].marks)
    history = tuple(msgspec.structs.replace(one, phase=bad, marks=marks) for one in loads.ticks(48))
    async with dashboard(loads.snapshot(jobs=(loads.job(),)), loads.answers(history)) as seen:
        await seen.press("v")
        await seen.sees("conv[/]x␛]52")
        assert "\x1b" not in seen.text
        assert "\u202e" not in seen.text
