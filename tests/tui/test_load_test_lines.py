"""What load tests are drawn with: columns that stay, axes, knobs, histograms, fronts. Numbers in, lines out."""

import itertools
from typing import Any

import load_scenes as loads
import msgspec
import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocol import (
    Cancelled,
    LoadKnobs,
    LoadMark,
    LoadSearch,
    LoadSettings,
    LoadTest,
    Queued,
    RunLoadTest,
    Running,
)
from tui import cli, load_form, load_testing, progress
from tui.lines import Line
from tui.loads import MOST_POINTS, Found, LoadCourse, finished_in_words, load_in_words
from tui.panes import load_figures, load_search, load_status
from tui.panes.jobs import job_line
from tui.panes.load_charts import Drawn, charts_of, cut, window_of
from tui.panes.load_knobs import still_asked, turned
from tui.panes.load_lines import Chart, Columns, Curve, Window, axis, draw, page, round_up, title, whole_window
from tui.sessions import UsageError
from tui.view import View


def course_of(count: int, **more: Any) -> LoadCourse:
    course = LoadCourse()
    course.settings = loads.SETTINGS
    for tick in loads.ticks(count, **more):
        course.add(tick)
    return course


def text(line: Line) -> str:
    return "".join(part for part, _ in line)


def test_a_tick_that_comes_twice_counts_once() -> None:
    course = course_of(20)
    course.add(loads.tick(20))
    assert len(course.points) == 20
    assert course.completed == 20 * 100
    course.replace(loads.ticks(24))
    assert (len(course.points), course.completed) == (24, 24 * 100)


def test_memory_and_power_are_on_the_same_axis_where_they_are_measured() -> None:
    def titles(course: LoadCourse, other: LoadCourse | None = None) -> list[str]:
        drawn = Drawn(course, running=True, other=other)
        both = [Columns(one, 0.25) for one in (course, other) if one is not None]
        charts = charts_of(drawn, both[0], both[1] if other else None, window_of(drawn), 80)
        assert all(any(value is not None for value in curve.values) for chart in charts for curve in chart.curves)
        return [text(title(chart)).strip() for chart in charts]

    plain = titles(course_of(40))
    assert not any("memory" in one or "power" in one for one in plain)
    on_cpu = course_of(40, memory_bytes=12 * 2**30)
    assert titles(on_cpu)[:-1] == plain
    assert titles(on_cpu)[-1] == "memory GiB  ━ machine 12.0"
    on_gpu = course_of(40, memory_bytes=12 * 2**30, gpu=0.5, gpu_memory_bytes=3 * 2**30, power_w=212.4)
    assert titles(on_gpu)[-2:] == ["memory GiB  ┅ machine 12.0    ━ GPU 3.0", "GPU power W  ━ drawn 212"]
    assert [one.split("  ")[0] for one in titles(on_gpu, on_gpu)][-3:] == [
        "GPU memory GiB",
        "memory GiB",
        "GPU power W",
    ]
    elsewhere = titles(course_of(40, cpu=None))
    assert not any("processors" in one for one in elsewhere)


def test_ticks_that_came_while_the_history_was_read_stay() -> None:
    course = LoadCourse()
    for tick in loads.ticks(30)[25:]:
        course.add(tick)
    course.replace(loads.ticks(30)[:27])
    assert [round(point.x * 4) for point in course.points] == list(range(1, 31))


def test_a_long_test_is_kept_small_and_its_last_minutes_sharp() -> None:
    course = LoadCourse()
    for number in range(1, 3 * MOST_POINTS):
        course.add(loads.tick(number, p99_ms=900.0 if number == 8 else 5.0))
    assert len(course.points) <= MOST_POINTS
    assert max(point.p99 or 0 for point in course.points) == 900.0
    assert all(after.x - before.x < 0.26 for before, after in itertools.pairwise(course.points[-1000:]))


def test_the_tests_of_a_search_follow_each_other_on_one_axis() -> None:
    course = LoadCourse()
    first, second = loads.ticks(40), loads.ticks(40, start=loads.scenes.NOW + 1)
    for tick in (*first, *second):
        course.add(tick)
    assert course.starts == [0.0, 13.0]
    part = course.part(loads.finished(age=-12))
    assert len(part.points) == 40
    assert part.points[0].x == pytest.approx(0.25)


def test_a_finished_column_stays_what_it_was() -> None:
    course = course_of(40)
    columns = Columns(course, 0.5)
    columns.update()
    before = columns.values("achieved", Window(0, 20), 40)[:20]
    for tick in loads.ticks(60)[40:]:
        course.add(tick)
    columns.update()
    assert columns.values("achieved", Window(0, 20), 40)[:20] == before


def test_what_did_not_run_is_a_gap_and_not_a_line() -> None:
    course = LoadCourse()
    for number in (*range(1, 9), *range(40, 49)):
        course.add(loads.tick(number))
    columns = Columns(course, 0.25)
    columns.update()
    values = columns.values("cpu", Window(0, 12.25), 49)
    assert values[8] is not None
    assert values[20] is None
    assert values[44] is not None


def test_a_page_turns_on_by_a_quarter() -> None:
    assert page(10, 60).start == 0
    assert page(60, 60).start == 0
    assert page(60.2, 60).start == 15
    assert page(75, 60).start == 15
    assert whole_window(12, 30.0) == Window(0, 30.0)
    assert whole_window(31, 30.0) == Window(0, 45.0)


@given(st.integers(20, 150), st.integers(1, 9), st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=300))
@settings(max_examples=40, deadline=None)
def test_every_line_of_a_chart_has_its_width(width: int, rows: int, values: list[float | None]) -> None:
    cells = (width - 7) * 2
    padded = [*values, *[None] * cells][:cells]
    chart = Chart("x", "log", (Curve(padded, "chart", "a", "1"), Curve(padded, "muted", "b", "2", dotted=True)), 20.0)
    lines = draw(chart, width, rows, (3,))
    assert len(lines) == rows + 1
    assert {len(text(line)) for line in lines[1:]} == {width}
    assert len(text(axis(Window(0, 33.0), width, (1, 5)))) == width


@given(st.floats(1e-3, 1e9))
def test_round_ends_are_above_and_near(value: float) -> None:
    assert value * (1 - 1e-6) <= round_up(value) <= value * 1.7


@given(st.text(alphabet="aé漢⠿ ", max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_cut_line_loses_no_cell(words: str, widths: list[int]) -> None:
    from rich.cells import cell_len

    pieces = cut(((words, "chart"), ("end", "")), tuple(widths))
    assert len(pieces) == len(widths)
    assert all(cell_len(text(piece)) <= width for piece, width in zip(pieces, widths))
    whole = "".join(text(piece) for piece in pieces)
    assert cell_len(whole) >= min(cell_len(words) + 3, sum(widths))
    assert whole.replace(" ", "") == (words + "end").replace(" ", "")[: len(whole.replace(" ", ""))]


def test_two_curves_in_a_chart_when_another_run_lies_over_it() -> None:
    mine, other = course_of(60), course_of(60, start=loads.scenes.NOW - 300)
    drawn = Drawn(mine, False, name="int8", other=other, other_name="onnx", limit=20.0)
    window = window_of(drawn)
    charts = charts_of(drawn, Columns(mine, 0.1), Columns(other, 0.1), window, 150)
    assert [len(chart.curves) for chart in charts] == [2] * 5
    assert charts[0].curves[0].values == charts[0].curves[1].values


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("rate_up", LoadKnobs(rate=440.0)),
        ("rate_down", LoadKnobs(rate=364.0)),
        ("rate_double", LoadKnobs(rate=800.0)),
        ("rate_halve", LoadKnobs(rate=200.0)),
        ("batch_double", LoadKnobs(max_batch_size=64)),
        ("batch_halve", LoadKnobs(max_batch_size=16)),
        ("wait_double", LoadKnobs(max_wait_ms=20.0)),
        ("wait_halve", LoadKnobs(max_wait_ms=5.0)),
        ("instances_up", LoadKnobs(instances=2)),
        ("instances_down", LoadKnobs(instances=1)),
        ("pause_load", LoadKnobs(paused=True)),
    ],
)
def test_what_a_key_asks_for(action: str, expected: LoadKnobs) -> None:
    knobs = LoadKnobs(rate=400.0, max_batch_size=32, max_wait_ms=10.0, instances=1, paused=False)
    assert turned(loads.SETTINGS, knobs, action) == expected


def test_waits_go_to_nothing_and_back_and_callers_by_one_at_least() -> None:
    wait, steps = 10.0, []
    for _ in range(8):
        found = turned(loads.SETTINGS, LoadKnobs(max_wait_ms=wait), "wait_halve")
        assert isinstance(found, LoadKnobs)
        assert found.max_wait_ms is not None
        steps.append(wait := found.max_wait_ms)
    assert steps[-1] == 0.0
    assert turned(loads.SETTINGS, LoadKnobs(max_wait_ms=0.0), "wait_double") == LoadKnobs(max_wait_ms=0.5)
    callers = LoadSettings(concurrency=3)
    assert turned(callers, LoadKnobs(concurrency=3), "rate_up") == LoadKnobs(concurrency=4)
    assert turned(callers, LoadKnobs(concurrency=1), "rate_down") == LoadKnobs(concurrency=1)


def test_what_cannot_be_turned_is_a_sentence() -> None:
    knobs = LoadKnobs(max_batch_size=32)
    assert "as fast as possible" in str(turned(LoadSettings(offline=True), knobs, "rate_up"))
    assert "server" in str(turned(LoadSettings(rate=1.0, url="http://h:1"), knobs, "batch_double"))
    assert "search" in str(turned(LoadSettings(sweep=True), knobs, "pause_load"))


def test_what_was_asked_is_settled_by_the_same_value() -> None:
    assert still_asked(LoadKnobs(rate=440.0), {"rate": 440.0, "instances": 2}) == {"instances": 2}


def test_a_histogram_shares_lines_when_there_are_more_sizes_than_lines() -> None:
    lines = load_figures.histogram(dict.fromkeys(range(1, 33), 10), 30, 8, "batches")
    assert len(lines) == 9
    assert "1–4" in text(lines[1])
    assert all(len(text(line)) <= 30 for line in lines)
    assert load_figures.histogram({}, 30, 8, "batches") == []


def test_figures_of_two_tests_say_how_their_loads_differ() -> None:
    one = loads.finished()
    other = loads.finished("t2", settings=msgspec.structs.replace(loads.SETTINGS, max_batch_size=8, rate=200.0))
    lines = [text(line) for line in load_figures.compared(one, other, ("a", "b"), 60)]
    assert any("rate 400 / 200, max batch size 32 / 8" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "Same load, same batching."),
        ({"settings": msgspec.structs.replace(loads.SETTINGS, seed=9)}, "Same load, same batching."),
        ({"settings": msgspec.structs.replace(loads.SETTINGS, trace="/b.txt")}, "They differ in: trace – / /b.txt"),
        ({"settings": msgspec.structs.replace(loads.SETTINGS, burst_size=3)}, "They differ in: burst size 8 / 3"),
        ({"settings": msgspec.structs.replace(loads.SETTINGS, timeout_ms=5.0)}, "They differ in: timeout ms – / 5"),
        ({"marks": (LoadMark(seconds=3.0, text="rate 1000/s"),)}, "They differ in: the second was turned while it ran"),
    ],
)
def test_two_loads_are_called_the_same_only_when_all_that_makes_them_is(more: dict[str, Any], said: str) -> None:
    lines = load_figures.compared(loads.finished(), loads.finished("t2", **more), ("a", "b"), 90)
    assert said in "\n".join(text(line) for line in lines)


def test_a_test_that_left_requests_without_an_answer_says_so_beside_its_p99() -> None:
    summary = msgspec.structs.replace(loads.summary(verdict=None, slo_ms=None), completed=600, rejected=400)
    settings = msgspec.structs.replace(loads.SETTINGS, slo_p99_ms=None)
    said = text(load_figures.verdict(loads.finished(settings=settings, summary=summary)))
    assert said.startswith("! ")
    assert "; 400 of 1000 requests were rejected or failed" in said


def test_a_searchs_rows_and_points_show_the_verdict_the_search_goes_by() -> None:
    """A saturated test fails though its requests so far kept the limit, and though it is not valid."""
    passed = loads.finished(saturated=True)
    assert passed.summary.verdict == "PASS"
    for summary in (passed.summary, msgspec.structs.replace(passed.summary, valid=False)):
        test = msgspec.structs.replace(passed, summary=summary)
        (row,) = load_search.rows(Found((test,)), "rate")
        assert "✗ FAIL  saturated" in text(row.line)
        assert [spot.mark for spot in load_search.spots(Found((test,)))[0]] == ["✗"]


@pytest.mark.parametrize(("verdict", "said"), [("UNCLEAR", "? 620/s stayed UNCLEAR"), ("FAIL", "✗ 620/s does not")])
def test_what_stayed_unclear_is_not_said_to_fail(verdict: str, said: str) -> None:
    search = loads.rate_search()[-1]
    assert isinstance(search, LoadSearch)
    found = msgspec.structs.replace(search, bracket_verdict=verdict)
    assert said in [words for words, _ in load_search.findings(found)]


def test_the_progress_of_a_search_is_that_of_the_test_that_runs() -> None:
    """Each has the length that its rate takes, whatever is asked for the others."""
    settings = LoadSettings(slo_p99_ms=20.0, seconds=10.0)
    course = course_of(40)
    course.settings = settings
    job = loads.job(state=Running(started=scenes.NOW - 13, pid=1, done=10, total=200, message="probe 1"))
    assert course.newest is not None
    view = View(now=course.newest.time, link="connected")
    (line,) = load_status.status(job, course, settings, Found(), view, 120)
    assert "of 3:20" in text(line)


def test_a_front_joins_its_points_and_names_fit() -> None:
    tests = [one for one in loads.sweep() if isinstance(one, LoadTest)]
    search = loads.sweep()[-1]
    for width in (40, 60, 140):
        lines = load_search.scatter(Found(tuple(tests), search), 30.0, width, 20)  # type: ignore[arg-type]
        drawn = "\n".join(text(line) for line in lines)
        assert drawn.count("★") == drawn.count("◆") == 1
        assert {len(text(line)) for line in lines[1:]} == {width}
    assert "best 16, 2 ms, ×1" in drawn


def test_the_forms_fields_are_the_engines_and_none_is_lost() -> None:
    fields = loads.fields()
    proposed = {"rate": 100.0, "concurrency": 16, "slo_p99_ms": 50.0}
    shown = {load: load_form.fields_for(fields, load, proposed) for load in load_form.LOADS}
    everything = {field.name for found in shown.values() for field in found}
    assert everything == {field.name for field in fields} - {"offline", "sweep"}
    for load, found in shown.items():
        assert [field.name for field in found][: len(load_form.IMPORTANT[load])] == list(load_form.IMPORTANT[load])
        values = {field.name: field.default for field in found}
        assert load_form.load_of(load_form.settings_of(load, values)) == load


def test_the_command_line_says_what_differs_from_the_defaults() -> None:
    line = load_form.command_line("int8", load_form.SWEEP, {"sweep_waits_ms": [0, 2.5], "instances": 1, "seconds": 4.0})
    assert line == "trimtab load-test int8 --sweep-waits-ms 0,2.5 --seconds 4 --sweep"


def test_loads_in_words() -> None:
    assert load_in_words(loads.SETTINGS, LoadKnobs(rate=440.0)) == "poisson 440/s"
    assert load_in_words(LoadSettings(concurrency=16)) == "16 callers"
    assert load_in_words(LoadSettings(slo_p99_ms=20.0)) == "highest rate with p99 under 20 ms"


def test_a_test_whose_knobs_were_turned_is_not_told_by_its_first_rate_alone() -> None:
    turned = loads.finished(marks=(LoadMark(seconds=3.0, text="rate 800"),))
    paused = loads.finished(marks=(LoadMark(seconds=3.0, text="paused"), LoadMark(seconds=4.0, text="resumed")))
    assert finished_in_words(loads.finished()) == finished_in_words(paused) == "poisson 400/s"
    assert finished_in_words(turned) == "poisson 400/s, turned"
    assert "turned while it ran: the figures mix loads" in text(load_figures.verdict(turned))
    assert "with b poisson 400/s, turned" in text(load_status.title("a", loads.SETTINGS, LoadKnobs(), ("b", turned)))


def test_every_setting_can_be_given_on_the_command_line() -> None:
    line = "load-test int8 --rate 5 --preferred-batch-sizes 8,16 --priority-levels 2 --seconds 10"
    assert load_testing.settings_of(cli._parse(line.split())) == LoadSettings(
        rate=5.0, preferred_batch_sizes=(8, 16), priority_levels=2, seconds=10.0
    )
    known = {name.replace("-", "_") for name in (*cli.LOAD_FLAGS, *cli.LOAD_OPTIONS)}
    assert known - {"slo_p99"} | {"slo_p99_ms"} == set(LoadSettings.__struct_fields__)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("load-test int8 --slo-p99 0", "--slo-p99: expected"),
        ("load-test int8 --arrivals often", "--arrivals is poisson or constant or bursty or replay, not often."),
        ("load-test int8 --rate 5 --wait never", "--wait is when-it-pays or always, not never."),
        ("load-test int8 --rate 5 --csv", "does not know --csv"),
        ("steer --pause --resume", "not allowed with"),
        ("serve int8 --preferred-batch-sizes 8,x", "sizes: whole numbers with commas between them, not '8,x'"),
    ],
)
def test_wrong_usage_names_the_option_and_what_it_takes(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_testing.settings_of(cli._parse(line.split()))
    assert sentence in str(caught.value)


def test_progress_says_what_a_load_test_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    queued = msgspec.structs.replace(loads.job(), state=Queued(waiting_for="Latency of int8"))
    snapshot = loads.snapshot(jobs=(queued,))
    run = msgspec.structs.replace(loads.answers()[RunLoadTest].run, id=queued.recipe_run)
    step = msgspec.structs.replace(run.steps[0], status="running", job=queued.id)
    run = msgspec.structs.replace(run, steps=(step,))
    lines = progress.PlainLines()
    for _ in range(2):
        lines.show(snapshot, run)
    told = capsys.readouterr().err
    assert told.count("waiting for Latency of int8") == 1
    assert "started" not in told
    lines.show(loads.snapshot(jobs=(loads.job(queued.id),)), run)
    assert "started" in capsys.readouterr().err
    assert progress.waiting(loads.snapshot(jobs=(queued, loads.job("j9"))), run) == ""


def test_a_cancelled_training_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    state = Cancelled(started=scenes.NOW - 60, finished=scenes.NOW)
    job = msgspec.structs.replace(loads.job(state=state), kind="distill", metrics={"checkpoint": 35.0})
    said = "The same step run again goes on from the checkpoint at step 35."
    assert f"cancelled. {said}" in text(job_line(job, 200, scenes.NOW))
    run = loads.answers()[RunLoadTest].run
    step = msgspec.structs.replace(run.steps[0], status="cancelled", job=job.id)
    progress.PlainLines().show(loads.snapshot(jobs=(job,)), msgspec.structs.replace(run, steps=(step,)))
    assert f"cancelled. {said}" in capsys.readouterr().err
    assert text(job_line(msgspec.structs.replace(job, metrics={}), 200, scenes.NOW)).endswith("  cancelled")
